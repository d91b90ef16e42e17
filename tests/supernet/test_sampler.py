"""What every path sampler owes training; a new one joins by one line in SETTINGS."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spaces import search_spaces

from supernet.errors import InvalidInput
from supernet.sampler import (
    SAMPLERS,
    FairNASSampler,
    MagicTSampler,
    ShuffledWalkSampler,
    UniformSampler,
    build_sampler,
)
from supernet.space import Architecture, OperatorSpec, SearchSpace

HERE = Path(__file__).parent
SPACE = SearchSpace.uniform(5, {name: OperatorSpec.of("identity") for name in ("a", "b", "c")})
SETTINGS = [
    {"name": "uniform"},
    {"name": "magic_t"},
    {"name": "magic_t", "changes": 3},
    {"name": "fairnas"},
    {"name": "fairnas", "accumulate": False},
    {"name": "shuffled_walk", "block": 700},
    {"name": "user_sampler:OppositeSampler"},
]
every_sampler = pytest.mark.parametrize("given_settings", SETTINGS, ids=str)


@pytest.fixture(autouse=True)
def user_module(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def test_every_sampler_of_ours_is_under_contract():
    assert set(SAMPLERS) <= {one["name"] for one in SETTINGS}


@every_sampler
def test_a_stretch_is_a_slice_of_the_whole_plan(given_settings):
    whole = build_sampler(given_settings, SPACE, seed=1).plan(0, 2100)
    assert len(whole) == 2100
    for start, count in [(0, 60), (0, 1), (17, 20), (30, 0), (1023, 3), (1024, 1), (2047, 9)]:
        fresh = build_sampler(given_settings, SPACE, seed=1)
        assert fresh.plan(start, count) == whole[start : start + count]


@every_sampler
def test_a_sampler_answers_the_same_in_any_order(given_settings):
    sampler = build_sampler(given_settings, SPACE, seed=1)
    late, early = sampler.plan(2500, 5), sampler.plan(3, 5)
    assert sampler.plan(2500, 5) == late
    assert build_sampler(given_settings, SPACE, seed=1).plan(3, 5) == early
    assert build_sampler(given_settings, SPACE, seed=1).plan(2490, 20)[10:15] == late


@every_sampler
def test_paths_lie_in_the_space(given_settings):
    for paths in build_sampler(given_settings, SPACE, seed=1).plan(0, 100):
        assert paths
        assert all(SPACE.contains(path) for path in paths)


@every_sampler
def test_seeds_and_phases_differ(given_settings):
    plans = [
        build_sampler({**given_settings, "phase": phase}, SPACE, seed=seed).plan(0, 50)
        for seed, phase in [(1, 0), (2, 0), (1, 1)]
    ]
    assert plans[0] != plans[1] != plans[2] != plans[0]
    assert plans[0] == build_sampler(given_settings, SPACE, seed=1).plan(0, 50)


def test_another_process_plans_the_same():
    code = f"""
import json, sys
sys.path[:0] = [{str(HERE)!r}]
from test_sampler import *
plans = [build_sampler(one, SPACE, seed=5).plan(1020, 10) for one in SETTINGS]
print(json.dumps([[[str(path) for path in paths] for paths in plan] for plan in plans]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    here = [build_sampler(one, SPACE, seed=5).plan(1020, 10) for one in SETTINGS]
    assert json.loads(done.stdout) == [
        [[str(path) for path in paths] for paths in plan] for plan in here
    ]


@settings(max_examples=30)
@given(search_spaces(min_open=2), st.integers(0, 2**32), st.integers(0, 1100), st.data())
def test_magic_t_changes_exactly_so_many_layers_a_step(space, seed, start, data):
    choices = sum(len(row) > 1 for row in space.layers)
    changes = data.draw(st.integers(1, choices))
    plan = MagicTSampler(space, seed=seed, changes=changes).plan(start, 40)
    assert [len(paths) for paths in plan] == [1] * 40
    walk = [path for (path,) in plan]
    assert all(a.distance(b) == changes for a, b in zip(walk, walk[1:], strict=False))


def operators_used(paths, layer):
    return sorted(path.operators[layer] for path in paths)


@settings(max_examples=30)
@given(search_spaces(), st.integers(0, 2**32), st.integers(0, 500))
def test_fairnas_uses_every_operator_of_every_layer_once_a_block(space, seed, start):
    size = max(map(len, space.layers))
    accumulated = FairNASSampler(space, seed=seed).plan(start, 3)
    single = FairNASSampler(space, seed=seed, accumulate=False).plan(start * size, 3 * size)
    assert [(path,) for block in accumulated for path in block] == single
    for block in accumulated:
        assert len(block) == size
        for layer, names in enumerate(space.layers):
            if len(names) == size:
                assert operators_used(block, layer) == sorted(names)
            counts = [operators_used(block, layer).count(name) for name in names]
            assert max(counts) - min(counts) <= 1


def test_fairnas_draws_each_layer_on_its_own():
    paths = [path for block in FairNASSampler(SPACE, seed=0).plan(0, 500) for path in block]
    same = sum(path.operators[0] == path.operators[1] for path in paths) / len(paths)
    assert same == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("changes", [1, 3])
def test_the_shuffled_walk_trains_the_walks_paths_in_another_order(changes):
    walk = MagicTSampler(SPACE, seed=3, changes=changes).plan(0, 900)
    shuffled = ShuffledWalkSampler(SPACE, seed=3, changes=changes, block=300).plan(0, 900)
    for first in (0, 300, 600):
        block, same = shuffled[first : first + 300], walk[first : first + 300]
        assert sorted(map(str, block)) == sorted(map(str, same))
        assert block != same
    distances = [a.distance(b) for (a,), (b,) in zip(shuffled, shuffled[1:], strict=False)]
    assert sum(distances) / len(distances) > 2.5


@pytest.mark.parametrize("name", ["uniform", "magic_t"])
def test_every_operator_of_a_layer_gets_its_share(name):
    paths = [path for (path,) in build_sampler({"name": name}, SPACE, seed=0).plan(0, 6000)]
    for layer in range(5):
        drawn = [path.operators[layer] for path in paths]
        assert all(1700 < drawn.count(operator) < 2300 for operator in SPACE.layers[layer])


def test_uniform_paths_do_not_depend_on_the_path_before():
    paths = [path for (path,) in UniformSampler(SPACE, seed=0).plan(0, 2000)]
    distances = [a.distance(b) for a, b in zip(paths, paths[1:], strict=False)]
    assert sum(distances) / len(distances) == pytest.approx(5 * 2 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"name": "magic_t", "changes": 0}, "changes=0"),
        ({"name": "magic_t", "changes": 6}, "changes=6"),
        ({"name": "magic_t", "change": 1}, "'change'"),
        ({"name": "shuffled_walk", "block": 0}, "block=0"),
        ({"name": "shuffled_walk", "block": 100.5}, "block=100.5"),
        ({"name": "shuffled_walk", "changes": 6}, "changes=6"),
        ({"name": "fairnas", "paths": 3}, "'paths'"),
        ({"name": "fair"}, "unknown sampler 'fair'; known are uniform, magic_t"),
        ({}, "unknown sampler"),
        ({"name": "no_such_module:Sampler"}, "no_such_module"),
        ({"name": "user_sampler:Missing"}, "Missing"),
        ({"name": "user_sampler:NOT_A_CLASS"}, "must be a class"),
        ({"name": "magic_t", "changes": True}, "a whole number, but got changes=True"),
        ({"name": "magic_t", "changes": "two"}, "a whole number, but got changes='two'"),
        ({"name": "magic_t", "change": 2}, "has no setting .change.; it has: changes"),
        ({"name": "fairnas", "accumulate": "maybe"}, "true or false, but got accumulate='maybe'"),
        ({"name": "uniform", "seed": 3}, "multiple values for keyword argument 'seed'"),
        ({"name": "collections:Counter"}, "plan"),
    ],
)
def test_a_wrong_sampler_or_setting_is_refused_by_name(given_settings, message):
    with pytest.raises(InvalidInput, match=message):
        build_sampler(given_settings, SPACE, seed=0)


PATH = SPACE.sample(random.Random(0))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([], "for 2 steps gave 0"),
        ([(PATH,)] * 3, "for 2 steps gave 3"),
        ([PATH, PATH], "a tuple of paths, but got Architecture"),
        ([(PATH,), ()], r"a tuple of paths, but got \(\)"),
        ([("a-b",), ("a-b",)], "a path is an Architecture, but got 'a-b'"),
        ([(Architecture(("foreign",) * 5),)] * 2, "'foreign'"),
        (None, "ZeroDivisionError: "),
    ],
)
def test_what_is_no_plan_is_refused_when_the_sampler_is_built(monkeypatch, plan, message):
    import user_sampler

    def planned(*_):
        return 1 / 0 if plan is None else plan

    monkeypatch.setattr(user_sampler.OppositeSampler, "plan", planned)
    with pytest.raises(InvalidInput, match=message):
        build_sampler({"name": "user_sampler:OppositeSampler"}, SPACE, seed=0)


def test_a_walk_needs_a_layer_with_a_choice():
    space = SearchSpace((("a",), ("b",)), SPACE.operators)
    with pytest.raises(InvalidInput, match="changes"):
        build_sampler({"name": "magic_t"}, space, seed=0)
