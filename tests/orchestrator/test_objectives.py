"""Objectives, fronts and hypervolume."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.objectives import Front, Objectives, dominates, hypervolume, hypervolume_over_time
from supernet.errors import InvalidInput

GRID = 4


def points_of(size):
    return st.lists(st.tuples(*[st.integers(0, GRID - 1)] * size), max_size=8)


def test_losses_are_signed_so_that_less_is_better():
    objectives = Objectives.of({"accuracy": "max", "flops": "min"})
    assert objectives.losses({"flops": 3.0, "accuracy": 0.5, "other": 1.0}) == (-0.5, 3.0)
    assert objectives.first == "accuracy" and objectives.names == ["accuracy", "flops"]


def test_an_objective_that_is_not_measured_is_named():
    with pytest.raises(InvalidInput, match=r"\['flops'\], but got 'val_loss_nats'"):
        Objectives().losses({"flops": 1.0})


@given(points_of(3))
def test_the_front_is_what_nothing_dominates(points):
    front = Front()
    for point in points:
        front.add(point)
    kept = {point for point in points if not any(dominates(other, point) for other in points)}
    assert sorted(front.points) == sorted(kept)


@given(st.integers(1, 3).flatmap(points_of))
def test_the_hypervolume_counts_the_dominated_cells_of_a_grid(points):
    size = len(points[0]) if points else 2
    cells = itertools.product(range(GRID), repeat=size)
    dominated = sum(
        any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points)
        for cell in cells
    )
    assert hypervolume(points, [GRID] * size) == dominated


def test_points_outside_the_reference_add_nothing():
    assert hypervolume([(0.0, 5.0), (1.0, 1.0)], [2.0, 2.0]) == 1.0


def test_the_hypervolume_over_time_grows_and_a_failed_child_adds_nothing():
    values = list(hypervolume_over_time([None, (2.0, 0.0), (0.0, 2.0), None, (1.0, 1.0)]))
    assert values == [0.0, 0.0, 0.0, 0.0, 0.25]
    assert list(hypervolume_over_time([None])) == [0.0]
