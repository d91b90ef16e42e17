"""Checkpoints: whole or not at all, verified, and no more of them than asked for."""

import json
import logging

import pytest
import torch
from memory_files import MemoryFiles
from training_jobs import SPACE, Recorder, job, settings, supernet, train_plainly

from supernet.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    version_of,
)
from supernet.engine import PlainEngine
from supernet.errors import CheckpointDamaged, StorageFailed
from supernet.sampler import UniformSampler
from supernet.training import train


def saved(*steps, files=None, keep=3):
    files = files or MemoryFiles()
    for step in steps:
        save_checkpoint(
            files,
            "net",
            step=step,
            weights={"a": torch.full((2, 3), float(step))},
            optimizer={"exp_avg/a": torch.zeros(2, 3)},
            extra={"sampler": {"name": "magic_t"}},
            keep=keep,
        )
    return files


def test_a_checkpoint_is_read_back_as_it_was_saved():
    files = saved(5)
    checkpoint = load_checkpoint(files, "net/step-00000005")
    assert (checkpoint.name, checkpoint.step) == ("net/step-00000005", 5)
    assert checkpoint.weights["a"].equal(torch.full((2, 3), 5.0))
    assert checkpoint.optimizer["exp_avg/a"].equal(torch.zeros(2, 3))
    assert files.read_json("net/step-00000005/manifest.json")["sampler"] == {"name": "magic_t"}


def test_the_newest_checkpoint_is_the_one_of_the_highest_step():
    assert latest_checkpoint(saved(9, 10, 100), "net").step == 100
    assert latest_checkpoint(MemoryFiles(), "net") is None


def test_no_more_than_the_newest_are_kept():
    files = saved(1, 2, 3, 4, keep=2)
    assert files.names("net") == ["step-00000003", "step-00000004"]


def test_an_unfinished_checkpoint_is_not_counted_among_the_kept_and_goes():
    files = saved(1, 2, keep=2)
    files.delete("net/step-00000002/manifest.json")
    saved(3, files=files, keep=2)
    assert files.names("net") == ["step-00000001", "step-00000003"]


def test_checkpoints_that_training_fell_back_from_do_not_push_out_good_ones():
    files = saved(1, 8, 9)
    saved(2, files=files, keep=2)
    assert files.names("net") == ["step-00000001", "step-00000002"]


DAMAGES = {
    "truncated": lambda files, name: files.data.update(
        {f"{name}/weights.safetensors": files.data[f"{name}/weights.safetensors"][:-1]}
    ),
    "flipped": lambda files, name: files.data.update(
        {f"{name}/weights.safetensors": files.data[f"{name}/weights.safetensors"][:-1] + b"\xff"}
    ),
    "no weights": lambda files, name: files.delete(f"{name}/weights.safetensors"),
    "no optimizer": lambda files, name: files.delete(f"{name}/optimizer.safetensors"),
    "no manifest": lambda files, name: files.delete(f"{name}/manifest.json"),
    "empty manifest": lambda files, name: files.data.update({f"{name}/manifest.json": b""}),
    "another manifest": lambda files, name: files.data.update({f"{name}/manifest.json": b"[1]"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_with_a_warning(damage, caplog):
    files = saved(1, 2)
    DAMAGES[damage](files, "net/step-00000002")
    with pytest.raises(CheckpointDamaged, match="net/step-00000002"):
        load_checkpoint(files, "net/step-00000002")
    with caplog.at_level(logging.WARNING):
        assert latest_checkpoint(files, "net").step == 1
    assert "net/step-00000002" in caplog.text and "falling back" in caplog.text


def test_the_message_of_a_truncated_file_gives_both_digests_and_its_size():
    files = saved(1)
    name = "net/step-00000001/weights.safetensors"
    files.data[name] = files.data[name][:7]
    wanted = files.read_json("net/step-00000001/manifest.json")["sha256"]["weights.safetensors"]
    with pytest.raises(CheckpointDamaged, match=rf"7 bytes.*{wanted}.*truncated or damaged"):
        load_checkpoint(files, "net/step-00000001")


def test_a_damaged_optimizer_does_not_matter_to_who_needs_the_weights_alone():
    files = saved(1)
    files.delete("net/step-00000001/optimizer.safetensors")
    assert load_checkpoint(files, "net/step-00000001", optimizer=False).optimizer == {}


@pytest.mark.parametrize("refused", ["weights", "optimizer", "manifest"])
def test_an_interrupted_save_leaves_the_checkpoints_before_and_is_ignored(refused):
    files = saved(1, 2)
    files.refused = (refused,)
    with pytest.raises(StorageFailed):
        saved(3, files=files)
    assert latest_checkpoint(files, "net").step == 2
    assert "step-00000001" in files.names("net")


@pytest.mark.parametrize("refused", ["weights", "optimizer", "manifest"])
def test_a_save_over_an_older_one_of_the_same_step_is_never_half_of_each(refused):
    files = saved(1, 2)
    before = files.data["net/step-00000002/manifest.json"]
    files.refused = (refused,)
    with pytest.raises(StorageFailed):
        saved(2, files=files)
    assert latest_checkpoint(files, "net").step == 1
    files.refused = ()
    saved(2, files=files)
    assert files.data["net/step-00000002/manifest.json"] == before


def test_nothing_in_a_checkpoint_is_pickled():
    files = saved(1)
    assert b"__metadata__" not in files.data["net/step-00000001/weights.safetensors"][:64]
    assert not any(data.startswith((b"\x80", b"PK")) for data in files.data.values())
    json.loads(files.data["net/step-00000001/manifest.json"])


def test_two_different_weights_have_two_versions():
    first, second, again = saved(1), saved(1, 2), saved(1)
    assert version_of(first, "net/step-00000001") == version_of(again, "net/step-00000001")
    assert version_of(first, "net/step-00000001").startswith("step-1-")
    assert version_of(second, "net/step-00000002") != version_of(first, "net/step-00000001")


def test_the_optimisers_state_comes_back_to_the_bit_in_a_fresh_engine():
    files = MemoryFiles()
    model = train_plainly(settings(steps=20), files=files)
    checkpoint = latest_checkpoint(files, "supernet")
    model.load_state_dict(dict(checkpoint.weights))
    fresh = PlainEngine(model, settings())
    assert fresh.optimizer_state() == {}
    fresh.load_optimizer_state(checkpoint.optimizer)
    state = fresh.optimizer_state()
    assert state.keys() == checkpoint.optimizer.keys() and state
    assert all(tensor.equal(checkpoint.optimizer[name]) for name, tensor in state.items())


def test_an_operator_that_was_never_trained_has_no_state():
    files, recipe, model = MemoryFiles(), settings(steps=10), supernet()
    path = UniformSampler(SPACE, seed=0).plan(0, 1)[0]
    one = job(recipe, files=files, plan=lambda _, count: [path] * count)
    train(PlainEngine(model, recipe), one, Recorder(), resume_from=None)
    state = latest_checkpoint(files, "supernet").optimizer
    trained = {name.split("/")[1] for name in state if "chain" in name}
    on_path = {
        name
        for layer, operator in enumerate(path[0].operators)
        for name, _ in model.named_parameters()
        if name.startswith(f"chain.layers.{layer}.{operator}.")
    }
    assert trained == on_path
