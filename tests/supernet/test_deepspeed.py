"""The DeepSpeed engine: plain PyTorch on the path, nothing off it, states that move between stages.

A world of one with gloo lives in this process for the length of the module; two workers are
processes of their own.
"""

import multiprocessing
import os
import random
import signal

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from memory_files import MemoryFiles
from test_path_adamw import HARD, two_paths
from training_jobs import (
    REPLACED_TOKENS,
    SPACE,
    Recorder,
    batches,
    job,
    largest_difference,
    settings,
    supernet,
    train_plainly,
)

from benchmarks.path_watch import PathWatch
from orchestrator.store import RunStore
from supernet.checkpoint import Checkpoint, latest_checkpoint
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.distillation import Teacher
from supernet.loss import evaluate
from supernet.path_adamw import PathParameters
from supernet.space import Architecture
from supernet.training import train

STAGES = (0, 1, 2, 3)
RECIPE = settings(steps=10, learning_rate=1e-3, warmup_steps=2)
RESUMED = settings(steps=20, checkpoint_steps=5)


@pytest.fixture(scope="module")
def world_of_one(tmp_path_factory):
    """This process as the only worker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "0")  # as Ray Train sets it
        meeting = tmp_path_factory.mktemp("meeting") / "file"
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


def deepspeed_engine(
    recipe=RECIPE, *, stage, weights=None, dropout=0.1, kind=DeepSpeedEngine, **shape
):
    """An engine in this process' world."""
    model = supernet(dropout=dropout, **shape)
    if weights is not None:
        model.load_state_dict(dict(weights))
    micro_batch = recipe.batch_size // (recipe.accumulation * dist.get_world_size())
    return kind(model, recipe, zero_stage=stage, micro_batch=micro_batch)


def train_with_deepspeed(
    recipe=RECIPE, *, stage, files=None, resume_from=None, kind=DeepSpeedEngine, **changes
):
    """Train the super-net in this process' world; returns the engine."""
    weights = resume_from and resume_from.weights
    engine = deepspeed_engine(recipe, stage=stage, weights=weights, kind=kind, **changes)
    train(engine, job(recipe, files=files), Recorder(), resume_from=resume_from)
    return engine


def watched_training(stage, *, steps=8, **changes):
    """Train two paths a step with everything that could drag what is off them."""
    recipe = settings(**{**HARD, "steps": steps, **changes})
    watch = PathWatch(deepspeed_engine(recipe, stage=stage, dropout=0.0))
    train(watch, job(recipe, plan=two_paths), Recorder(), resume_from=None)
    return watch


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def same_bits(one, other):
    """Whether two sets of tensors of the same names agree in every bit."""
    assert one.keys() == other.keys()
    return all(
        one[name].reshape(-1).view(torch.int32).equal(other[name].reshape(-1).view(torch.int32))
        for name in one
    )


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({"clip_norm": 0, "weight_decay": 0.3}, 0),
        ({"clip_norm": 0, "accumulation": 2}, 0),
        ({"clip_norm": 0, "precision": "bf16"}, 0),
        ({"clip_norm": 0.1, "accumulation": 2}, 1e-6),
    ],
)
def test_every_stage_trains_as_plain_pytorch(world_of_one, stage, changes, bound):
    recipe = settings(steps=10, learning_rate=1e-3, warmup_steps=2, **changes)
    plain = train_plainly(recipe)
    engine = train_with_deepspeed(recipe, stage=stage)
    if not stage:
        bound = 0  # the other stages sum up the norm in another order
    assert largest_difference(plain.state_dict(), engine.weights()) <= bound


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_off_the_path_not_a_bit_moves(world_of_one, stage, precision):
    watch = watched_training(stage, precision=precision)
    assert watch.off_path_moved == 0
    assert watch.on_path_moved > 0


@pytest.mark.parametrize("stage", STAGES[1:])
def test_what_is_off_the_path_moves_if_the_engine_is_not_told(world_of_one, stage, monkeypatch):
    monkeypatch.setattr(PathParameters, "begin", lambda self, paths: None)
    assert watched_training(stage).off_path_moved > 0


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_resumes_from_its_checkpoint_to_the_bit(world_of_one, stage):
    recipe = settings(steps=20)
    undisturbed = train_with_deepspeed(recipe, stage=stage)
    stopped = deepspeed_engine(recipe, stage=stage)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, job(recipe), Recorder(stop_at=10), resume_from=None)
    held = copied(stopped.weights()), copied(stopped.optimizer_state())
    checkpoint = Checkpoint("step-00000010", 10, *held, {})
    resumed = train_with_deepspeed(recipe, stage=stage, resume_from=checkpoint)
    assert same_bits(undisturbed.weights(), resumed.weights())
    assert same_bits(undisturbed.optimizer_state(), resumed.optimizer_state())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimisers_state_moves_from_stage_0_and_back(world_of_one, stage):
    before = copied(train_with_deepspeed(stage=0).optimizer_state())
    assert len({float(before[name]) for name in before if name.startswith("step/")}) > 1
    sharded = deepspeed_engine(stage=stage)
    sharded.load_optimizer_state(before)
    moved = copied(sharded.optimizer_state())
    assert same_bits(before, moved)

    back = deepspeed_engine(stage=0)
    back.load_optimizer_state(moved)
    assert same_bits(back.optimizer_state(), before)


def test_a_checkpoint_of_plain_pytorch_goes_on_with_deepspeed(world_of_one):
    files = MemoryFiles()
    recipe = settings(steps=20)
    undisturbed = train_plainly(recipe, files=files)
    files.delete("supernet/step-00000020")
    checkpoint = latest_checkpoint(files, "supernet")
    resumed = train_with_deepspeed(recipe, stage=0, resume_from=checkpoint)
    assert same_bits(undisturbed.state_dict(), resumed.weights())


def test_at_stage_3_a_childs_loss_is_that_of_the_gathered_weights_amid_training(world_of_one):
    recipe = settings(steps=12, clip_norm=0, learning_rate=1e-3)
    path, batch = SPACE.sample(random.Random(0)), batches(recipe).at(0)
    losses = []

    class Scoring(DeepSpeedEngine):
        def update(self, learning_rate):
            super().update(learning_rate)
            losses.append(evaluate(self.model, path, [batch])[0])

    engine = train_with_deepspeed(recipe, stage=3, kind=Scoring, dropout=0.0)
    plain = train_plainly(recipe, dropout=0.0)
    assert same_bits(engine.weights(), plain.state_dict())
    assert losses[-1] == pytest.approx(evaluate(plain, path, [batch])[0], abs=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_generator_is_trained_as_by_plain_pytorch(world_of_one, stage):
    recipe = settings(steps=4, clip_norm=0, learning_rate=1e-3)
    engine = train_with_deepspeed(recipe, stage=stage, dropout=0.0, **REPLACED_TOKENS)
    plain = train_plainly(recipe, dropout=0.0, shape=REPLACED_TOKENS)
    weights = engine.weights()
    fresh = supernet(dropout=0.0, **REPLACED_TOKENS).state_dict()
    assert not torch.equal(weights["generator.head.bias"], fresh["generator.head.bias"])
    assert same_bits(weights, plain.state_dict())


def test_at_stage_3_the_largest_path_teaches_as_by_plain_pytorch(world_of_one):
    recipe = settings(steps=4, clip_norm=0, learning_rate=1e-3)
    largest = Architecture.parse("feed_forward-feed_forward-feed_forward")
    teacher = Teacher(weight=1.0, temperature=2.0, path=largest)
    engine = deepspeed_engine(recipe, stage=3, dropout=0.0)
    train(engine, job(recipe, teacher=teacher), Recorder(), resume_from=None)
    plain = train_plainly(recipe, dropout=0.0, teacher=teacher)
    assert same_bits(engine.weights(), plain.state_dict())


def two_processes(function, *args):
    """Run a function of a rank in two processes at once, which find DeepSpeed imported."""
    multiprocessing.set_forkserver_preload(["deepspeed"])
    mp.start_processes(function, args=args, nprocs=2, start_method="forkserver")


def _join(rank, meeting):
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)


def _worker(rank, folder):
    """One of two workers: what each stage comes to, what moved, and what becomes of a state."""
    _join(rank, folder / "meeting")
    one = torch.load(folder / "one.pt", weights_only=True)
    for stage in STAGES:
        files = MemoryFiles()
        engine = train_with_deepspeed(stage=stage, files=files, dropout=0.0)
        assert bool(files.data) == (rank == 0)
        watches = [watched_training(stage, steps=4, precision=kind) for kind in ("fp32", "bf16")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PathParameters, "begin", lambda self, paths: None)
            untold = watched_training(stage, steps=3)
        loaded = deepspeed_engine(stage=stage)
        loaded.load_optimizer_state(one)
        found = {
            "weights": engine.weights(),
            "state": engine.optimizer_state(),
            "loaded": loaded.optimizer_state(),
            "off": torch.tensor([float(watch.off_path_moved) for watch in watches]),
            "untold": torch.tensor(float(untold.off_path_moved)),
            "on": torch.tensor([float(watch.on_path_moved) for watch in watches]),
        }
        torch.save(found, folder / f"{stage}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_train_as_one_on_the_joined_batch(tmp_path, world_of_one):
    one = train_with_deepspeed(stage=0, dropout=0.0)
    wanted = {"weights": one.weights(), "state": one.optimizer_state()}
    torch.save(wanted["state"], tmp_path / "one.pt")
    two_processes(_worker, tmp_path)
    for stage in STAGES:
        first, second = (
            torch.load(tmp_path / f"{stage}-{rank}.pt", weights_only=True) for rank in (0, 1)
        )
        for part in ("weights", "state"):
            assert same_bits(first[part], second[part])
            assert largest_difference(wanted[part], first[part]) < 1e-5
        for found in (first, second):
            assert same_bits(found["loaded"], wanted["state"])
            assert not found["off"].any() and found["on"].all()
            assert found["untold"]


class DyingEngine(DeepSpeedEngine):
    """Ends the second worker's process at an update, as a lost machine would."""

    dies_at = None

    def update(self, learning_rate):
        if self.rank == 1 and self.dies_at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.dies_at is not None:
            self.dies_at -= 1
        super().update(learning_rate)


def _mortal_worker(rank, folder, stage, dies_at):
    """One of two workers that trains from the newest checkpoint in the folder."""
    _join(rank, folder / f"meeting-{dies_at}")
    DyingEngine.dies_at = dies_at
    files = RunStore(folder / "run")
    newest = latest_checkpoint(files, "supernet") if files.exists("supernet") else None
    assert dies_at is not None or newest.step < RESUMED.steps
    resumed = train_with_deepspeed(
        RESUMED, stage=stage, files=files, resume_from=newest, kind=DyingEngine
    )
    torch.save(resumed.weights(), folder / f"resumed-{rank}.pt")
    if dies_at is None:
        undisturbed = train_with_deepspeed(RESUMED, stage=stage)
        torch.save(undisturbed.weights(), folder / f"undisturbed-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_training_whose_worker_is_killed_resumes_to_the_bit(tmp_path, stage):
    dies_at = random.randrange(5, RESUMED.steps)
    with pytest.raises((mp.ProcessExitedException, mp.ProcessRaisedException)):
        two_processes(_mortal_worker, tmp_path, stage, dies_at)
    assert not (tmp_path / "resumed-0.pt").exists(), f"worker 1 was to die at step {dies_at}"
    two_processes(_mortal_worker, tmp_path, stage, None)
    resumed, undisturbed = (
        torch.load(tmp_path / f"{name}-0.pt", weights_only=True)
        for name in ("resumed", "undisturbed")
    )
    assert same_bits(resumed, undisturbed), f"killed at step {dies_at}"
