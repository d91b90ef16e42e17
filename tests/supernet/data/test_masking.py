"""Masking: pure in seed and step, the same for any number of parts, fixed for evaluation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from supernet.data.masking import Batch, TrainBatches, eval_batches, unigram_nats
from supernet.data.packed import PackedDataset
from supernet.data.summary import DataSummary
from supernet.errors import InvalidInput


@pytest.fixture(scope="module")
def train(prepared: Path) -> PackedDataset:
    return PackedDataset(prepared, "train")


@pytest.fixture(scope="module")
def valid(prepared: Path) -> PackedDataset:
    return PackedDataset(prepared, "valid")


@pytest.fixture(scope="module")
def batches(train: PackedDataset, summary: DataSummary) -> TrainBatches:
    return TrainBatches(train, summary, batch_size=12, seed=5)


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.input_ids_BT, batch.attention_mask_BT, batch.masked_N, batch.targets_N]


def same(one: Batch, other: Batch) -> bool:
    return all(map(torch.equal, tensors(one), tensors(other)))


def originals(batch: Batch) -> torch.Tensor:
    """The sequences before they were masked."""
    flat = batch.input_ids_BT.reshape(-1).clone()
    flat[batch.masked_N] = batch.targets_N
    return flat.reshape(batch.input_ids_BT.shape)


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("step", [0, 7, 500])
def test_the_parts_together_are_the_batch_of_one_worker(
    batches: TrainBatches, step: int, parts: int
) -> None:
    whole = batches.at(step)
    split = [batches.at(step, part=part, parts=parts) for part in range(parts)]
    starts = np.cumsum([0, *(part.input_ids_BT.numel() for part in split)])
    joined = Batch(
        torch.cat([part.input_ids_BT for part in split]),
        torch.cat([part.attention_mask_BT for part in split]),
        torch.cat([p.masked_N + start for p, start in zip(split, starts, strict=False)]),
        torch.cat([part.targets_N for part in split]),
    )
    assert same(joined, whole)


def test_a_part_that_is_not_there_is_refused(batches: TrainBatches) -> None:
    with pytest.raises(ValueError, match="0 <= part < parts"):
        batches.at(0, part=2, parts=2)


def test_the_same_seed_and_step_give_the_same_batch_in_any_order_of_asking(
    train: PackedDataset, summary: DataSummary, batches: TrainBatches
) -> None:
    later = [batches.at(step) for step in (400, 3, 80)]
    fresh = TrainBatches(train, summary, batch_size=12, seed=5)
    assert all(map(same, later, [fresh.at(step) for step in (400, 3, 80)]))
    other = TrainBatches(train, summary, batch_size=12, seed=6)
    assert not same(other.at(3), fresh.at(3))


def test_an_epoch_shows_each_sequence_once_and_the_next_in_another_order(
    train: PackedDataset, summary: DataSummary
) -> None:
    batches = TrainBatches(train, summary, batch_size=1, seed=0)
    epochs = [
        [
            tuple(originals(batches.at(step))[0].tolist())
            for step in range(start, start + len(train))
        ]
        for start in (0, len(train))
    ]
    stored = sorted(map(tuple, train.rows(np.arange(len(train))).tolist()))
    assert sorted(epochs[0]) == sorted(epochs[1]) == stored
    assert epochs[0] != epochs[1]


def test_training_masks_differ_from_epoch_to_epoch(
    train: PackedDataset, summary: DataSummary
) -> None:
    one = replace(summary, num_sequences=summary.num_sequences | {"train": 10**6})
    batches = TrainBatches(train, one, batch_size=len(train), seed=0)
    assert not torch.equal(batches.at(0).masked_N, batches.at(1).masked_N)


def test_masking_is_80_10_10_and_spares_special_tokens(
    train: PackedDataset, summary: DataSummary
) -> None:
    batches = TrainBatches(train, summary, batch_size=100, seed=0)
    kinds = {"mask": 0, "kept": 0, "random": 0}
    num_ordinary = 0
    for step in range(30):
        batch = batches.at(step)
        special = torch.isin(originals(batch), torch.tensor(summary.special_ids))
        num_ordinary += int((~special).sum())
        assert not torch.isin(batch.targets_N, torch.tensor(summary.special_ids)).any()
        assert torch.equal(batch.masked_N, batch.masked_N.sort().values)
        inputs_N = batch.input_ids_BT.reshape(-1)[batch.masked_N]
        kinds["mask"] += int((inputs_N == summary.mask_id).sum())
        kinds["kept"] += int((inputs_N == batch.targets_N).sum())
        kinds["random"] += int(
            ((inputs_N != summary.mask_id) & (inputs_N != batch.targets_N)).sum()
        )
    total = sum(kinds.values())
    assert total / num_ordinary == pytest.approx(0.15, abs=0.005)
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["kept"] / total == pytest.approx(0.1, abs=0.02)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.02)


def test_types_and_shapes_are_as_declared(batches: TrainBatches, summary: DataSummary) -> None:
    batch = batches.at(0).to("cpu")
    assert [tensor.dtype for tensor in tensors(batch)] == [
        torch.int64,
        torch.bool,
        torch.int64,
        torch.int64,
    ]
    assert batch.input_ids_BT.shape == (12, summary.sequence_length)
    assert batch.num_targets == len(batch.masked_N) == len(batch.targets_N) > 0
    assert int(batch.input_ids_BT.max()) < summary.vocab_size


def test_validation_masks_are_fixed(valid: PackedDataset, summary: DataSummary) -> None:
    one, two = (
        eval_batches(valid, summary, num_sequences=20, batch_size=8, seed=3) for _ in range(2)
    )
    assert [len(batch.input_ids_BT) for batch in one] == [8, 8, 4]
    assert all(map(same, one, two))
    other = eval_batches(valid, summary, num_sequences=20, batch_size=8, seed=4)
    assert torch.equal(originals(one[0]), originals(other[0]))
    assert not torch.equal(one[0].masked_N, other[0].masked_N)


def test_a_validation_mask_does_not_depend_on_the_size_of_its_batch(
    valid: PackedDataset, summary: DataSummary
) -> None:
    (whole,) = eval_batches(valid, summary, num_sequences=12, batch_size=12, seed=3)
    pieces = eval_batches(valid, summary, num_sequences=12, batch_size=5, seed=3)
    joined_BT = torch.cat([piece.input_ids_BT for piece in pieces])
    assert torch.equal(whole.input_ids_BT, joined_BT)


def test_padding_is_neither_attended_to_nor_masked(
    valid: PackedDataset, summary: DataSummary
) -> None:
    batches = eval_batches(
        valid, replace(summary, mask_probability=0.99), num_sequences=10**6, batch_size=64, seed=0
    )
    assert sum(len(batch.input_ids_BT) for batch in batches) == len(valid)
    for batch in batches:
        padding = originals(batch) == summary.pad_id
        assert torch.equal(batch.attention_mask_BT, ~padding)
        assert not padding.reshape(-1)[batch.masked_N].any()


def test_the_unigram_bar_is_the_cross_entropy_on_the_targets_of_evaluation(
    prepared: Path, train: PackedDataset, valid: PackedDataset, summary: DataSummary
) -> None:
    tokens = train.rows(np.arange(len(train))).reshape(-1)
    counts = np.bincount(tokens, minlength=summary.vocab_size) + 1.0
    counts[list(summary.special_ids)] = 0
    (batch,) = eval_batches(valid, summary, num_sequences=15, batch_size=99, seed=2)
    probabilities = counts / counts.sum()
    expected = -np.log(probabilities[batch.targets_N.numpy()]).mean()
    got = unigram_nats(prepared, "valid", num_sequences=15, seed=2)
    assert got == pytest.approx(expected)
    everything = unigram_nats(prepared, "valid", num_sequences=len(valid), seed=summary.seed)
    assert summary.unigram_nats["valid"] == pytest.approx(everything)


def test_a_split_smaller_than_a_batch_is_refused(
    train: PackedDataset, summary: DataSummary
) -> None:
    TrainBatches(train, summary, batch_size=len(train), seed=0)
    with pytest.raises(InvalidInput, match=rf"has {len(train)} of 32 tokens and batch_size is"):
        TrainBatches(train, summary, batch_size=len(train) + 1, seed=0)
