"""Batches for masked language modelling, as BERT masks: 80 % [MASK], 10 % random, 10 % kept.

Training batches are a pure function of (seed, step, part); validation and test masks are fixed.

B: sequences, T: tokens of a sequence, N: masked positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from supernet.data.packed import PackedDataset
from supernet.data.summary import DataSummary, check_batch
from supernet.errors import InvalidInput

UNIGRAMS_FILE = "train_unigrams.npy"
_TRAIN_MASKS, _EVAL_MASKS, _ORDER = 1, 2, 3
"""Streams of random numbers that must not coincide."""


@dataclass(frozen=True)
class Batch:
    """Sequences with masked positions and what stood there."""

    input_ids_BT: torch.Tensor
    attention_mask_BT: torch.Tensor
    """True where there is a token, False where there is padding."""
    masked_N: torch.Tensor
    """Flat indices into B*T, ascending."""
    targets_N: torch.Tensor

    @property
    def num_targets(self) -> int:
        return self.targets_N.numel()

    @property
    def num_tokens(self) -> int:
        """Real tokens, padding left out."""
        return int(self.attention_mask_BT.sum())

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on the device."""
        return Batch(
            self.input_ids_BT.to(device),
            self.attention_mask_BT.to(device),
            self.masked_N.to(device),
            self.targets_N.to(device),
        )


@dataclass(frozen=True)
class _Draws:
    """Random numbers from 0 to 1: what decides on masking, on its kind, and on the replacement."""

    choice_BT: NDArray[np.float64]
    kind_BT: NDArray[np.float64]
    replacement_BT: NDArray[np.float64]

    @classmethod
    def draw(cls, seed: list[int], *, shape: tuple[int, int], rows: slice) -> "_Draws":
        draws = np.random.default_rng(seed).random((3, *shape))[:, rows]
        return cls(draws[0], draws[1], draws[2])


class TrainBatches:
    """The training batch of any step: an endless walk over shuffled epochs, without state.

    Raises:
        InvalidInput: if the split has fewer sequences than one batch.
    """

    def __init__(
        self, dataset: PackedDataset, summary: DataSummary, *, batch_size: int, seed: int
    ) -> None:
        check_batch(summary, batch_size=batch_size)
        self._dataset = dataset
        self._summary = summary
        self._batch_size = batch_size
        self._seed = seed
        self._ordinary_ids = _ordinary_ids(summary)
        self._orders: dict[int, NDArray[np.int64]] = {}

    def at(self, step: int, *, part: int = 0, parts: int = 1) -> Batch:
        """The part of the step's batch; all parts together are the same batch for any `parts`."""
        if not 0 <= part < parts:
            raise ValueError(f"0 <= part < parts must hold, but got {part=}, {parts=}")
        size = self._batch_size
        rows = slice(part * size // parts, (part + 1) * size // parts)
        positions = np.arange(step * size + rows.start, step * size + rows.stop)
        ids_BT = self._dataset.rows(self._indices(positions))
        seed = [self._seed, step, _TRAIN_MASKS]
        draws = _Draws.draw(seed, shape=(size, self._summary.sequence_length), rows=rows)
        return _masked(ids_BT, draws, self._summary, self._ordinary_ids)

    def _indices(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        epochs, places = np.divmod(positions, len(self._dataset))
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            indices[epochs == epoch] = self._order(epoch)[places[epochs == epoch]]
        return indices

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The epoch's shuffled order; kept for the epoch and the one beside it."""
        order = self._orders.get(epoch)
        if order is None:
            rng = np.random.default_rng([self._seed, epoch, _ORDER])
            order = rng.permutation(len(self._dataset))
            near = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1}
            self._orders = near | {epoch: order}
        return order


def eval_batches(
    dataset: PackedDataset,
    summary: DataSummary,
    *,
    num_sequences: int,
    batch_size: int,
    seed: int,
) -> list[Batch]:
    """Batches of sequences spread evenly over the split; all of them if it has fewer.

    A sequence's mask depends on its index and the seed alone.
    """
    return list(
        _eval_stream(
            dataset, summary, num_sequences=num_sequences, batch_size=batch_size, seed=seed
        )
    )


def _eval_stream(
    dataset: PackedDataset,
    summary: DataSummary,
    *,
    num_sequences: int,
    batch_size: int,
    seed: int,
) -> Iterator[Batch]:
    count = min(num_sequences, len(dataset))
    indices = np.arange(count) * len(dataset) // max(count, 1)
    ordinary_ids = _ordinary_ids(summary)
    for start in range(0, count, batch_size):
        chosen = indices[start : start + batch_size]
        draws = _eval_draws(chosen, length=summary.sequence_length, seed=seed)
        yield _masked(dataset.rows(chosen), draws, summary, ordinary_ids)


def _eval_draws(indices: NDArray[np.int64], *, length: int, seed: int) -> _Draws:
    draws = np.stack(
        [
            np.random.default_rng([seed, index, _EVAL_MASKS]).random((3, length))
            for index in indices.tolist()
        ],
        axis=1,
    )
    return _Draws(draws[0], draws[1], draws[2])


def _masked(
    ids_BT: NDArray[np.int64],
    draws: _Draws,
    summary: DataSummary,
    ordinary_ids: NDArray[np.int64],
) -> Batch:
    chosen_BT = (draws.choice_BT < summary.mask_probability) & ~np.isin(ids_BT, summary.special_ids)
    random_BT = ordinary_ids[(draws.replacement_BT * len(ordinary_ids)).astype(np.int64)]
    inputs_BT = np.where(chosen_BT & (draws.kind_BT < 0.8), summary.mask_id, ids_BT)
    inputs_BT = np.where(chosen_BT & (draws.kind_BT >= 0.9), random_BT, inputs_BT)
    masked_N = np.flatnonzero(chosen_BT)
    return Batch(
        torch.from_numpy(inputs_BT),
        torch.from_numpy(ids_BT != summary.pad_id),
        torch.from_numpy(masked_N),
        torch.from_numpy(ids_BT.reshape(-1)[masked_N]),
    )


def _ordinary_ids(summary: DataSummary) -> NDArray[np.int64]:
    return np.setdiff1d(np.arange(summary.vocab_size), summary.special_ids)


def unigram_nats(folder: Path, split: str, *, num_sequences: int, seed: int) -> float:
    """Cross-entropy of the training unigrams on the targets of `eval_batches`: a bar to get under.

    Counts are smoothed by adding one.
    """
    return target_unigram_nats(
        folder, split, DataSummary.load(folder), num_sequences=num_sequences, seed=seed
    )


def target_unigram_nats(
    folder: Path, split: str, summary: DataSummary, *, num_sequences: int, seed: int
) -> float:
    """As `unigram_nats`, for data whose summary is not written yet."""
    log_probs = _log_unigrams(folder, summary)
    total, count = 0.0, 0
    batches = _eval_stream(
        PackedDataset(folder, split),
        summary,
        num_sequences=num_sequences,
        batch_size=256,
        seed=seed,
    )
    for batch in batches:
        total -= float(log_probs[batch.targets_N.numpy()].sum())
        count += batch.num_targets
    return total / count if count else float("nan")


def _log_unigrams(folder: Path, summary: DataSummary) -> NDArray[np.float64]:
    path = folder / UNIGRAMS_FILE
    try:
        counts = np.load(path, allow_pickle=False).astype(np.float64) + 1.0
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{path} is damaged ({error}): put back what the data stage wrote, or start another run"
        ) from None
    counts[list(summary.special_ids)] = 0.0
    with np.errstate(divide="ignore"):
        log_probs: NDArray[np.float64] = np.log(counts / counts.sum())
    return log_probs
