"""How many children a trial holds."""

import pytest

from orchestrator.batch_size import LARGEST, BatchSize


def size_after(seconds, *, idle=False, evaluators=2, candidates=10_000, trials=20):
    size = BatchSize(evaluators=evaluators, candidates=candidates, in_flight=3)
    for _ in range(trials):
        size.after(seconds=seconds, idle=idle, evaluators=evaluators)
    return size.size


def test_short_trials_grow_to_the_largest():
    assert size_after(0.1) == LARGEST


def test_trials_that_follow_each_other_slowly_enough_stay():
    assert size_after(3.5) == size_after(3.5, trials=0) == 8


def test_idle_evaluators_get_more():
    assert size_after(60.0, idle=True, trials=1) == 16


@pytest.mark.parametrize(
    ("evaluators", "candidates", "largest"), [(2, 1000, 50), (2, 300, 15), (2, 20, 8), (1, 20, 4)]
)
def test_a_search_keeps_its_generations_unless_evaluators_would_wait(
    evaluators, candidates, largest
):
    assert size_after(0.1, evaluators=evaluators, candidates=candidates) == largest


def test_the_first_batch_has_a_child_for_every_evaluator():
    assert size_after(60.0, evaluators=64, candidates=100, trials=0) == 64


def test_evaluators_that_join_get_larger_batches():
    size = BatchSize(evaluators=1, candidates=20, in_flight=3)
    assert size.size == 4
    size.after(seconds=60.0, idle=True, evaluators=3)
    assert size.size == 8
