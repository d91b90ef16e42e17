"""One contract for all searchers, then what each does beyond it."""

import json
import logging
import os
import random
import subprocess
import sys

import pytest

from orchestrator.objectives import Objectives
from orchestrator.searchers import RegularizedEvolution, as_ask_tell, build_searcher
from supernet.errors import InvalidInput
from supernet.space import Architecture, OperatorSpec, SearchSpace

NAMES = ("a0", "a1", "a2", "a3")
SPACE = SearchSpace.uniform(4, {name: OperatorSpec.of("identity") for name in NAMES})


class Walk:
    """A user's searcher: a step from the best so far."""

    def __init__(self, space, *, seed):
        self._space = space
        self._rng = random.Random(seed)
        self._best = (float("inf"), space.sample(self._rng))

    def ask(self):
        return self._space.random_neighbour(self._best[1], self._rng)

    def tell(self, architecture, metrics):
        if metrics is not None:
            self._best = min(self._best, (metrics["val_loss_nats"], architecture))


class Broken:
    def __init__(self, space, *, seed):
        look_up(space)  # noqa: F821


class Mute:
    """Lacks tell."""

    def __init__(self, space, *, seed):
        pass

    def ask(self):
        return Architecture(("a0",) * 4)


CONTRACT = {
    "random": {"name": "random"},
    "evolution": {"name": "evolution", "population": 6, "sample": 3},
    "user": {"name": f"{__name__}:Walk"},
    "tune": {"name": "user_searcher:Walk"},
    "tpe": {"name": "optuna", "n_startup_trials": 5},
    "nsga2": {"name": "optuna", "sampler": "nsga2", "population_size": 6},
    "hyperopt": {"name": "hyperopt", "n_initial_points": 5},
}
STATEFUL = ("random", "evolution")


@pytest.fixture(params=CONTRACT)
def settings(request):
    return CONTRACT[request.param]


def loss_of(architecture):
    return float(sum(int(name[1:]) for name in architecture.operators))


def play(searcher, count):
    """Ask and tell; candidates whose loss is 7 fail."""
    for _ in range(count):
        architecture = searcher.ask()
        metrics = {"val_loss_nats": loss_of(architecture), "flops": 1.0}
        searcher.tell(architecture, None if loss_of(architecture) == 7 else metrics)
        yield architecture


def built(settings, seed=0):
    return build_searcher(settings, SPACE, seed=seed)


def test_candidates_are_within_the_space(settings):
    assert all(SPACE.contains(architecture) for architecture in play(built(settings), 60))


def test_the_same_seed_gives_the_same_candidates(settings):
    assert list(play(built(settings), 40)) == list(play(built(settings), 40))


def test_another_seed_gives_other_candidates(settings):
    assert list(play(built(settings), 10)) != list(play(built(settings, seed=1), 10))


def test_asks_may_run_ahead_of_tells(settings):
    searcher = built(settings)
    asked = [searcher.ask() for _ in range(20)]
    for architecture in reversed(asked):
        searcher.tell(architecture, {"val_loss_nats": loss_of(architecture)})
    assert SPACE.contains(searcher.ask())


def test_scores_that_were_not_asked_for_are_taken(settings):
    searcher = built(settings)
    for name in NAMES:
        searcher.tell(Architecture((name,) * 4), {"val_loss_nats": 1.0})
        searcher.tell(Architecture((name,) * 4), None)
    assert SPACE.contains(searcher.ask())


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("at", [0, 3, 6, 25])
def test_a_saved_searcher_goes_on_as_if_nothing_had_been(name, at):
    undisturbed = list(play(built(CONTRACT[name]), at + 14))
    searcher = built(CONTRACT[name])
    list(play(searcher, at))
    state = json.loads(json.dumps(searcher.state_dict()))
    restored = built(CONTRACT[name])
    list(play(restored, 5))
    restored.load_state_dict(state)
    assert list(play(restored, 14)) == undisturbed[at:]


@pytest.mark.parametrize("name", [name for name in CONTRACT if name not in ("user", "tune")])
def test_another_process_proposes_the_same(name):
    code = (
        "from orchestrator.searchers import build_searcher\n"
        "from supernet.space import *\n"
        f"space = SearchSpace.uniform(4, dict.fromkeys({NAMES}, OperatorSpec.of('identity')))\n"
        f"searcher = build_searcher({CONTRACT[name]}, space, seed=3)\n"
        "print([str(searcher.ask()) for _ in range(20)])\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    searcher = built(CONTRACT[name], seed=3)
    assert done.stdout.strip() == str([str(searcher.ask()) for _ in range(20)])


def test_ours_load_neither_ray_nor_torch():
    code = (
        "import sys, orchestrator.searchers, orchestrator.candidates, orchestrator.baseline\n"
        "sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def evolution(**settings):
    return RegularizedEvolution(SPACE, seed=0, **{"population": 5, "sample": 5} | settings)


def fill(searcher, architectures):
    """Make these the living population, with their losses."""
    for _ in architectures:
        searcher.ask()
    for architecture in architectures:
        searcher.tell(architecture, {"val_loss_nats": loss_of(architecture)})


UNIFORM = [Architecture((name,) * 4) for name in ("a1", "a0", "a2", "a3", "a3")]


def test_evolution_changes_the_tournaments_winner_in_one_layer():
    searcher = evolution(sample=5)
    fill(searcher, UNIFORM)
    parents = [
        min(member.distance(child) for member in UNIFORM)
        for child in (searcher.ask() for _ in range(50))
    ]
    assert set(parents) == {1}


@pytest.mark.parametrize(("mode", "parent"), [("min", "a0"), ("max", "a3")])
def test_evolution_prefers_the_better_half(mode, parent):
    searcher = evolution(sample=4, objectives=Objectives.of({"val_loss_nats": mode}))
    fill(searcher, UNIFORM)
    children = [searcher.ask() for _ in range(200)]
    best = sum(Architecture((parent,) * 4).distance(child) == 1 for child in children)
    assert best > 100


def test_evolution_lets_the_oldest_die():
    searcher = evolution(population=2, sample=2)
    fill(searcher, UNIFORM[:2])
    fill(searcher, UNIFORM[2:4])
    assert searcher.state_dict()["living"] == [["a2-a2-a2-a2", 8.0], ["a3-a3-a3-a3", 12.0]]


def test_evolution_begins_uniformly_and_failed_ones_do_not_count():
    told = evolution(population=4, sample=1)
    for _ in range(3):
        told.tell(told.ask(), None)
    fill(told, [Architecture(("a0",) * 4)])
    begun = [told.ask() for _ in range(3)]
    assert any(Architecture(("a0",) * 4).distance(child) > 1 for child in begun)
    assert Architecture(("a0",) * 4).distance(told.ask()) == 1


def test_evolution_beats_random_search():
    space = SearchSpace.uniform(10, {name: OperatorSpec.of("identity") for name in NAMES})

    def best(settings, seed):
        found = play(build_searcher(settings, space, seed=seed), 300)
        return min(loss_of(architecture) for architecture in found)

    settings = {"name": "evolution", "population": 30, "sample": 8}
    wins = [best(settings, seed) < best({"name": "random"}, seed) for seed in range(5)]
    assert all(wins)


def test_evolution_works_where_there_is_no_choice():
    space = SearchSpace.uniform(2, {"a0": OperatorSpec.of("identity")})
    searcher = RegularizedEvolution(space, seed=0, population=1, sample=1)
    assert len(set(play(searcher, 5))) == 1


def test_a_metric_that_is_not_measured_is_refused():
    objectives = Objectives.of({"latency_ms": "min"})
    for settings in (
        {"name": "evolution"},
        {"name": "user_searcher:Walk", "metric": "latency_ms"},
    ):
        searcher = build_searcher(settings, SPACE, seed=0, objectives=objectives)
        with pytest.raises(InvalidInput, match=r"\['flops'\], but got 'latency_ms'"):
            searcher.tell(searcher.ask(), {"flops": 1.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "tpe"}, "unknown searcher 'tpe'; known are random, evolution, optuna, hyper"),
        ({}, "a searcher is {name: …} with its settings, but got {}: name one of random"),
        ({"name": "nowhere:Searcher"}, "cannot load the searcher 'nowhere:Searcher'"),
        ({"name": "random", "depth": 3}, "searcher 'random' has no setting 'depth'; it has: none"),
        ({"name": "evolution", "sample": 0}, "1 <= sample <= population must hold"),
        ({"name": "evolution", "sample": 60}, "sample=60, population=50"),
        ({"name": "evolution", "mode": "max"}, "no setting 'mode'; it has: population, sample"),
        ({"name": f"{__name__}:Mute"}, "but Mute lacks tell"),
        ({"name": "user_searcher:Walk", "depth": 3}, "'user_searcher:Walk'"),
        ({"name": f"{__name__}:Broken"}, "NameError: name 'look_up' is not defined; it is made"),
        ({"name": "user_searcher:Walk", "mode": "low"}, "must be 'min' or 'max'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(InvalidInput) as caught:
        built(settings)
    assert message in str(caught.value)


def test_a_tune_searcher_sees_a_choice_of_operators_per_layer():
    from user_searcher import Walk as TuneWalk

    inner = TuneWalk()
    as_ask_tell(inner, SPACE)
    assert inner.space == {f"layer_0{number}": list(NAMES) for number in range(4)}
    assert inner.properties == ("val_loss_nats", "min")


def test_a_tune_searcher_is_told_its_own_trials():
    from user_searcher import Walk as TuneWalk

    inner = TuneWalk(seed=1)
    searcher = as_ask_tell(inner, SPACE)
    first, second = searcher.ask(), searcher.ask()
    searcher.tell(second, {"val_loss_nats": 2.0})
    searcher.tell(first, None)
    assert inner.completed == [
        ("candidate_000002", {"val_loss_nats": 2.0}, False),
        ("candidate_000001", None, True),
    ]
    assert inner.evaluated == []


def test_a_refused_repeat_leaves_the_first_trial_open():
    from user_searcher import Walk as TuneWalk

    inner = TuneWalk()
    space = SearchSpace.uniform(1, {"a0": OperatorSpec.of("identity")})
    searcher = as_ask_tell(inner, space)
    first, repeat = searcher.ask(), searcher.ask()
    searcher.tell(repeat, None)
    searcher.tell(first, {"val_loss_nats": 2.0})
    assert [(trial, error) for trial, _, error in inner.completed] == [
        ("candidate_000002", True),
        ("candidate_000001", False),
    ]


def test_a_tune_searcher_takes_earlier_scores_as_evaluated_points():
    from user_searcher import Walk as TuneWalk

    inner = TuneWalk(metric=["val_loss_nats", "flops"], mode=["min", "min"])
    searcher = as_ask_tell(inner, SPACE)
    searcher.tell(UNIFORM[0], {"val_loss_nats": 2.0, "flops": 5.0})
    layers = {f"layer_0{number}": "a1" for number in range(4)}
    assert inner.evaluated == [(layers, [2.0, 5.0])]


def test_a_tune_searcher_that_takes_no_earlier_scores_goes_on_with_one_warning(caplog):
    searcher = built({"name": "user_searcher:Forgetful"})
    for architecture in UNIFORM:
        searcher.tell(architecture, {"val_loss_nats": 2.0})
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Forgetful takes no scores of candidates" in caplog.text


def test_a_tune_searcher_that_has_finished_stops():
    searcher = built({"name": "user_searcher:Walk", "last": 2})
    assert [searcher.ask() is None for _ in range(2)] == [False, False]
    with pytest.raises(StopIteration):
        searcher.ask()


def test_a_tune_searcher_that_ignores_the_space_is_named(caplog):
    searcher = built({"name": "user_searcher:Stubborn"})
    assert "Stubborn did not take the search space" in caplog.text
    with pytest.raises(InvalidInput, match="each of layer_00 … layer_03, but Stubborn gave"):
        searcher.ask()


def test_a_tune_searcher_without_a_seed_is_a_warning(caplog):
    built({"name": "user_searcher:Seedless"})
    assert "takes no seed" in caplog.text


def test_a_factory_may_make_the_searcher():
    settings = {"name": "user_searcher:with_object", "metric": "flops"}
    assert SPACE.contains(built(settings).ask())


def test_ray_tunes_optuna_searches():
    settings = {"name": "ray.tune.search.optuna:OptunaSearch"}
    first = list(play(built(settings), 15))
    assert first == list(play(built(settings), 15))
    assert all(SPACE.contains(architecture) for architecture in first)


@pytest.mark.parametrize(
    ("modes", "sampler"),
    [({"val_loss_nats": "min"}, "TPESampler"), ({"a": "min", "b": "max"}, "NSGAIISampler")],
)
def test_optuna_takes_the_sampler_that_fits_the_objectives(modes, sampler):
    searcher = build_searcher({"name": "optuna"}, SPACE, seed=0, objectives=Objectives.of(modes))
    assert type(searcher._study.sampler).__name__ == sampler
    metrics = {name: float(number) for number, name in enumerate(modes)}
    searcher.tell(searcher.ask(), metrics)
    assert searcher._study.trials[0].values == [-1.0 * (mode == "max") for mode in modes.values()]


def test_an_unknown_sampler_of_optuna_is_refused():
    with pytest.raises(InvalidInput, match="one of tpe, nsga2, random, but got 'cma'"):
        built({"name": "optuna", "sampler": "cma"})


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"pip install 'magic-nas\[hyperopt\]'"):
        built({"name": "hyperopt"})
