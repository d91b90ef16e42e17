"""Rows from a user's own function."""

import re

import numpy as np
import pytest

from evaluators.own_scorer import OwnScorer
from supernet.space import Architecture

CHILD = Architecture.parse("a-b")


def row_of(score, objectives=("accuracy",)):
    (row,) = OwnScorer(score, version="own", objectives=objectives).rows([CHILD])
    return row


def test_a_row_holds_the_metrics_as_plain_numbers():
    row = row_of(lambda child: {"accuracy": np.float32(0.5), "size": len(child)})
    assert row.pop("wall_s") >= 0
    assert row == {
        "architecture": "a-b",
        "accuracy": 0.5,
        "size": 2,
        "supernet_version": "own",
        "error": None,
    }
    assert type(row["size"]) is int and type(row["accuracy"]) is float


def raising(child):
    raise RuntimeError(f"no {child}")


@pytest.mark.parametrize(
    ("score", "error"),
    [
        (raising, "RuntimeError: no a-b"),
        (lambda _: {"accuracy": float("nan")}, "'accuracy' must be a finite number, but is nan"),
        (lambda _: {"accuracy": "good"}, "must be a finite number, but is 'good'"),
        (lambda _: {"acuracy": 1.0}, r"must hold 'accuracy'[^$]*holds \['acuracy'\]"),
        (lambda _: 0.5, "must be metrics by name, but got 0.5"),
        (lambda _: {"accuracy": 1.0, "error": 2.0}, "a name other than"),
    ],
)
def test_what_is_no_score_is_a_row_with_the_error(score, error):
    row = row_of(score)
    assert "accuracy" not in row
    assert re.search(error, row["error"])


def test_one_that_fails_does_not_take_the_others_with_it():
    children = [CHILD, Architecture.parse("b-b")]
    scorer = OwnScorer(
        lambda child: {"size": 1 / (child != CHILD)}, version="own", objectives=["size"]
    )
    assert [row["error"] is None for row in scorer.rows(children)] == [False, True]
