"""The DeepSpeed engine: stage 0 is plain PyTorch to the bit, states move between the stages.

A world of one with gloo lives in this process for the length of the module; two workers are
processes of their own.
"""

import logging
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory_files import MemoryFiles
from training_jobs import Recorder, job, largest_difference, settings, supernet, train_plainly

from supernet.checkpoint import latest_checkpoint
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.errors import InvalidInput
from supernet.training import train

STAGES = (0, 1, 2)
RECIPE = settings(steps=10, learning_rate=1e-3, warmup_steps=2)


@pytest.fixture(scope="module")
def world_of_one(tmp_path_factory):
    """This process as the only worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # as Ray Train sets it
        meeting = tmp_path_factory.mktemp("meeting") / "file"
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def train_with_deepspeed(recipe=RECIPE, *, stage, files=None, resume_from=None, dropout=0.1):
    """Train the super-net in this process' world; returns the engine."""
    model = supernet(dropout=dropout)
    if resume_from is not None:
        model.load_state_dict(dict(resume_from.weights))
    micro_batch = recipe.batch_size // (recipe.accumulation * dist.get_world_size())
    engine = DeepSpeedEngine(model, recipe, zero_stage=stage, micro_batch=micro_batch)
    train(engine, job(recipe, files=files), Recorder(), resume_from=resume_from)
    return engine


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"clip_norm": 0}, 0),
        ({"clip_norm": 0, "accumulation": 2}, 0),
        ({"clip_norm": 1.0}, 1e-6),  # DeepSpeed sums up the norm in another order
        ({"clip_norm": 0.1, "accumulation": 2}, 1e-6),
    ],
)
def test_stage_0_trains_as_plain_pytorch(world_of_one, changes, bound):
    recipe = settings(steps=10, learning_rate=1e-3, warmup_steps=2, **changes)
    plain = train_plainly(recipe)
    engine = train_with_deepspeed(recipe, stage=0)
    assert largest_difference(plain.state_dict(), engine.model.state_dict()) <= bound


def test_stage_0_resumes_from_its_checkpoint_to_the_bit(world_of_one):
    files = MemoryFiles()
    undisturbed = train_with_deepspeed(settings(steps=20), stage=0, files=files)
    files.delete("supernet/step-00000020")
    checkpoint = latest_checkpoint(files, "supernet")
    assert checkpoint.step == 10
    resumed = train_with_deepspeed(settings(steps=20), stage=0, resume_from=checkpoint)
    assert largest_difference(undisturbed.model.state_dict(), resumed.model.state_dict()) == 0


def test_stage_0_leaves_operators_off_the_path_as_they_are(world_of_one):
    engine = train_with_deepspeed(settings(steps=1, weight_decay=0.5), stage=0)
    fresh, moved = supernet().state_dict(), engine.model.state_dict()
    still = [name for name in fresh if "chain" in name and fresh[name].equal(moved[name])]
    assert still and len(still) < sum("chain" in name for name in fresh)


@pytest.mark.parametrize("stage", [1, 2])
def test_stages_1_and_2_train_and_warn_of_what_they_move(world_of_one, stage, caplog):
    with caplog.at_level(logging.WARNING, logger="supernet"):
        engine = train_with_deepspeed(stage=stage)
    assert f"train.zero_stage={stage}" in caplog.text and "off the path" in caplog.text
    plain, ours = train_plainly(RECIPE).state_dict(), engine.model.state_dict()
    assert 0 < largest_difference(plain, ours) < 0.05
    assert largest_difference(supernet().state_dict(), ours) > 1e-3


@pytest.mark.parametrize("stage", [1, 2])
def test_the_optimisers_state_moves_from_stage_0_and_back(world_of_one, stage):
    before = copied(train_with_deepspeed(stage=0).optimizer_state())
    sharded = DeepSpeedEngine(supernet(), RECIPE, zero_stage=stage, micro_batch=8)
    sharded.load_optimizer_state(before)
    moved = copied(sharded.optimizer_state())
    assert before.keys() <= moved.keys()
    for name, tensor in before.items():
        if not name.startswith("step/"):
            assert tensor.equal(moved[name]), name
    assert {float(moved[name]) for name in moved if name.startswith("step/")} == {10.0}

    back = DeepSpeedEngine(supernet(), RECIPE, zero_stage=0, micro_batch=8)
    back.load_optimizer_state(moved)
    assert largest_difference(copied(back.optimizer_state()), moved) == 0


@pytest.mark.parametrize("stage", [1, 2])
def test_a_sharded_training_resumes_where_it_stopped(world_of_one, stage):
    files = MemoryFiles()
    undisturbed = train_with_deepspeed(settings(steps=20), stage=stage, files=files)
    files.delete("supernet/step-00000020")
    checkpoint = latest_checkpoint(files, "supernet")
    resumed = train_with_deepspeed(settings(steps=20), stage=stage, resume_from=checkpoint)
    assert largest_difference(undisturbed.model.state_dict(), resumed.model.state_dict()) < 1e-6


def test_a_checkpoint_of_plain_pytorch_goes_on_with_deepspeed(world_of_one):
    files = MemoryFiles()
    recipe = settings(steps=20, clip_norm=0)
    undisturbed = train_plainly(recipe, files=files)
    files.delete("supernet/step-00000020")
    checkpoint = latest_checkpoint(files, "supernet")
    resumed = train_with_deepspeed(recipe, stage=0, resume_from=checkpoint)
    assert largest_difference(undisturbed.state_dict(), resumed.model.state_dict()) == 0


def test_stage_3_is_refused_before_anything_is_built():
    with pytest.raises(InvalidInput, match=r"0, 1 or 2, but got 3.*use stage 2"):
        DeepSpeedEngine(supernet(), RECIPE, zero_stage=3, micro_batch=8)


def _worker(rank, meeting, out):
    """One of two workers: trains with each stage and writes the weights that it comes to."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    for stage in STAGES:
        files = MemoryFiles()
        engine = train_with_deepspeed(stage=stage, files=files, dropout=0.0)
        found = {"weights": engine.model.state_dict(), "state": engine.optimizer_state()}
        torch.save(found, f"{out}-{stage}-{rank}.pt")
        assert bool(files.data) == (rank == 0)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_train_as_one_on_the_joined_batch(tmp_path, world_of_one):
    mp.spawn(_worker, args=(tmp_path / "meeting", tmp_path / "worker"), nprocs=2)
    for stage in STAGES:
        one = train_with_deepspeed(stage=stage, dropout=0.0)
        wanted = {"weights": one.model.state_dict(), "state": one.optimizer_state()}
        first, second = (
            torch.load(tmp_path / f"worker-{stage}-{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        for part in ("weights", "state"):
            assert largest_difference(first[part], second[part]) == 0
            assert largest_difference(wanted[part], first[part]) < 1e-5
