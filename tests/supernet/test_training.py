"""The training loop: resuming, accumulation, what stays still, rates, rows and checkpoints."""

import math

import pytest
import torch
from memory_files import MemoryFiles
from training_jobs import (
    SPACE,
    Recorder,
    batches,
    job,
    largest_difference,
    settings,
    supernet,
    train_plainly,
)

from supernet.checkpoint import latest_checkpoint
from supernet.engine import PlainEngine
from supernet.errors import StorageFailed, TrainingDiverged
from supernet.sampler import MagicTSampler, UniformSampler
from supernet.space import Architecture
from supernet.training import learning_rate, train

FIRST = Architecture.parse("attention-feed_forward-conv3")
SECOND = Architecture.parse("conv3-feed_forward-identity")


@pytest.mark.parametrize("stop_at", [20, 30])
def test_a_training_stopped_after_a_checkpoint_ends_with_the_same_weights_to_the_bit(stop_at):
    undisturbed = train_plainly(settings())
    files = MemoryFiles()
    with pytest.raises(KeyboardInterrupt):
        train_plainly(settings(), files=files, observer=Recorder(stop_at=stop_at))
    checkpoint = latest_checkpoint(files, "supernet")
    assert checkpoint.step == stop_at - 10
    resumed = train_plainly(settings(), files=files, resume_from=checkpoint)
    assert largest_difference(undisturbed.state_dict(), resumed.state_dict()) == 0
    assert latest_checkpoint(files, "supernet").step == 40


def test_a_training_resumed_without_the_optimisers_state_ends_elsewhere():
    undisturbed = train_plainly(settings())
    files = MemoryFiles()
    with pytest.raises(KeyboardInterrupt):
        train_plainly(settings(), files=files, observer=Recorder(stop_at=20))
    checkpoint = latest_checkpoint(files, "supernet", optimizer=False)
    resumed = train_plainly(settings(), files=files, resume_from=checkpoint)
    assert largest_difference(undisturbed.state_dict(), resumed.state_dict()) > 1e-4


def test_dropout_is_on_in_training():
    with_dropout, without = train_plainly(settings()), train_plainly(settings(), dropout=0.0)
    assert largest_difference(with_dropout.state_dict(), without.state_dict()) > 1e-4


def test_two_accumulation_steps_make_the_same_step_as_one():
    recipe = {"steps": 10, "learning_rate": 1e-3}
    whole = train_plainly(settings(**recipe), dropout=0.0)
    halves = train_plainly(settings(**recipe, accumulation=2), dropout=0.0)
    assert largest_difference(whole.state_dict(), halves.state_dict()) < 1e-6


@pytest.mark.parametrize("paths", [(FIRST,), (FIRST, SECOND)])
def test_operators_off_the_path_do_not_move_in_spite_of_weight_decay_and_momentum(paths):
    recipe = settings(steps=20, weight_decay=0.5, schedule="constant", warmup_steps=0)
    warm = supernet()
    everything = UniformSampler(SPACE, seed=0).plan
    engine = PlainEngine(warm, recipe)
    train(engine, job(recipe, plan=everything), Recorder(), resume_from=None)
    before = {name: tensor.clone() for name, tensor in warm.state_dict().items()}

    train(engine, job(recipe, plan=lambda _, count: [paths] * count), Recorder(), resume_from=None)
    moved = {name for name, tensor in warm.state_dict().items() if not tensor.equal(before[name])}
    on_path = {
        f"chain.layers.{layer}.{operator}."
        for path in paths
        for layer, operator in enumerate(path.operators)
        if operator != "identity"
    }
    assert {name for name in moved if name.startswith("chain")} == {
        name for name in before if name.startswith(tuple(on_path))
    }
    assert any(name.startswith("stem") for name in moved)
    assert any(name.startswith("head") for name in moved)


def test_the_gradients_of_two_paths_add_up_and_the_loss_is_their_mean():
    both, once, twice = Recorder(), Recorder(), Recorder()
    recipe = settings(steps=1)
    for observer, paths in ((both, (FIRST, SECOND)), (once, (FIRST,)), (twice, (SECOND,))):
        train_plainly(
            recipe, observer=observer, dropout=0.0, plan=lambda _, n, paths=paths: [paths] * n
        )
    losses = [observer.intervals[0]["loss_nats"] for observer in (both, once, twice)]
    assert losses[0] == pytest.approx((losses[1] + losses[2]) / 2)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", {4: 1.0, 52: 1.0, 99: 1.0}),
        ("linear", {4: 1.0, 52: 0.5, 99: 1 / 96}),
        ("cosine", {4: 1.0, 52: 0.5, 76: 0.5 - math.sqrt(0.125), 99: 0.0002677}),
    ],
)
def test_the_learning_rate_warms_up_linearly_then_follows_its_schedule(schedule, rates):
    recipe = settings(steps=100, warmup_steps=4, learning_rate=2.0, schedule=schedule)
    assert [learning_rate(recipe, step) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]
    for step, rate in rates.items():
        assert learning_rate(recipe, step) == pytest.approx(2 * rate, rel=1e-3)


def test_a_warm_up_longer_than_training_is_only_warm_up():
    recipe = settings(steps=2, warmup_steps=4, learning_rate=2.0)
    assert [learning_rate(recipe, step) for step in range(2)] == [0.5, 1.0]
    train_plainly(recipe)


def test_training_lowers_the_loss():
    observer = Recorder()
    recipe = settings(steps=100, learning_rate=3e-3)
    train_plainly(recipe, observer=observer, plan=lambda _, count: [(FIRST,)] * count)
    losses = [row["loss_nats"] for row in observer.intervals]
    assert losses[-1] < losses[0] - 0.05


def test_every_interval_is_kept_once_with_the_rate_of_its_step():
    observer = Recorder()
    recipe = settings(steps=35, checkpoint_steps=15)
    train_plainly(recipe, observer=observer)
    assert [row["step"] for row in observer.kept] == [10, 20, 30, 35]
    assert observer.kept == observer.intervals
    rates = [row["learning_rate"] for row in observer.kept]
    assert rates == [learning_rate(recipe, step - 1) for step in (10, 20, 30, 35)]
    assert all(row["tokens_per_s"] > 0 for row in observer.kept)


def test_a_resumed_training_keeps_each_row_once():
    files, first, second = MemoryFiles(), Recorder(stop_at=30), Recorder()
    with pytest.raises(KeyboardInterrupt):
        train_plainly(settings(), files=files, observer=first)
    checkpoint = latest_checkpoint(files, "supernet")
    train_plainly(settings(), files=files, observer=second, resume_from=checkpoint)
    assert [row["step"] for row in first.kept + second.kept] == [10, 20, 30, 40]


def test_probes_are_measured_at_each_checkpoint_without_moving_the_weights():
    recipe, observer = settings(steps=20), Recorder()
    probe = {"probe_paths": [FIRST, SECOND], "probe_batches": [batches(recipe).at(0)]}
    probed = train_plainly(recipe, observer=observer, **probe)
    found = [(row["step"], row["architecture"]) for row in observer.probes]
    assert found == [(step, str(path)) for step in (10, 20) for path in (FIRST, SECOND)]
    unprobed = train_plainly(recipe)
    assert largest_difference(probed.state_dict(), unprobed.state_dict()) == 0
    assert probed.training


def test_a_checkpoint_is_due_after_minutes_too():
    files = MemoryFiles()
    train_plainly(
        settings(checkpoint_steps=1000, checkpoint_minutes=1e-9, keep_checkpoints=9), files=files
    )
    assert files.names("supernet") == [f"step-{step:08d}" for step in (10, 20, 30, 40)]


def test_only_the_newest_checkpoints_are_kept():
    files = MemoryFiles()
    train_plainly(settings(keep_checkpoints=2), files=files)
    assert files.names("supernet") == ["step-00000030", "step-00000040"]


def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_checkpoints():
    files, model, recipe = MemoryFiles(), supernet(), settings()

    class Poison(Recorder):
        def on_interval(self, row):
            if row["step"] == 20:
                with torch.no_grad():
                    model.head.bias.fill_(float("nan"))

    with pytest.raises(TrainingDiverged) as caught:
        train(PlainEngine(model, recipe), job(recipe, files=files), Poison(), resume_from=None)
    (path,) = MagicTSampler(SPACE, seed=0).plan(20, 1)[0]
    assert f"is nan at step 20 on the path {path};" in str(caught.value)
    assert "lower the learning rate (0.01)" in str(caught.value)
    assert "step-00000010" in files.names("supernet")


def test_a_checkpoint_that_cannot_be_written_stops_training_and_leaves_the_one_before():
    class Full(Recorder):
        def on_interval(self, row):
            files.refused = ("optimizer",) if row["step"] == 20 else ()

    files = MemoryFiles()
    with pytest.raises(StorageFailed, match="step-00000020/optimizer"):
        train_plainly(settings(), files=files, observer=Full())
    assert latest_checkpoint(files, "supernet").step == 10
