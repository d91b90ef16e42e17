"""Children handed to evaluators side by side."""

import asyncio

import pytest

from orchestrator.scoring_pool import EvaluatorLost, ScoringPool

CHILDREN = [f"{a}-{b}-{c}" for c in "xy" for b in "xy" for a in "xyz"]


class Evaluator:
    """Scores by length after a turn of the loop; `trouble` may raise or wait instead."""

    def __init__(self, trouble=None):
        self.chunks, self.trouble, self.revived, self.restarted = [], trouble, 0, 0

    async def score_together(self, architectures):
        self.chunks.append(list(architectures))
        await asyncio.sleep(0.001)
        if self.trouble is not None:
            await self.trouble(architectures)
        return [{"architecture": text, "score": len(text)} for text in architectures]

    async def revive(self):
        self.revived += 1

    async def restart(self):
        self.restarted += 1


def failed(text, error):
    return {"architecture": text, "error": error}


def score(evaluators, *batches, timeout_s=None):
    async def run():
        pool = ScoringPool(evaluators, failed=failed, timeout_s=timeout_s)
        return await asyncio.gather(*map(pool.score, batches))

    return asyncio.run(asyncio.wait_for(run(), timeout=20))


def test_rows_come_in_the_order_of_their_batch_each_child_scored_once():
    evaluators = [Evaluator() for _ in range(3)]
    batches = [CHILDREN[:7], CHILDREN[7:]]
    rows = score(evaluators, *batches)
    assert [[row["architecture"] for row in batch] for batch in rows] == batches
    scored = [text for one in evaluators for chunk in one.chunks for text in chunk]
    assert sorted(scored) == sorted(CHILDREN)


def test_a_chunk_is_a_stretch_of_sorted_paths_and_chunks_get_smaller():
    (evaluator,) = evaluators = [Evaluator()]
    score(evaluators, CHILDREN)
    assert [text for chunk in evaluator.chunks for text in chunk] == sorted(CHILDREN)
    assert [len(chunk) for chunk in evaluator.chunks] == [6, 3, 2, 1]


def test_a_free_evaluator_takes_what_a_slow_one_leaves():
    async def wait(_):
        await asyncio.sleep(0.3)

    slow, fast = Evaluator(wait), Evaluator()
    score([slow, fast], CHILDREN)
    assert len(slow.chunks) == 1 and sum(map(len, fast.chunks)) >= len(CHILDREN) // 2


def test_children_of_an_evaluator_that_dies_are_scored_all_the_same():
    deaths = iter([True, True, True, False])

    async def die(_):
        if next(deaths, False):
            raise EvaluatorLost("gone")

    evaluator = Evaluator(die)
    (rows,) = score([evaluator], CHILDREN)
    assert all("score" in row for row in rows) and len(rows) == len(CHILDREN)
    assert evaluator.revived == 3


def test_a_child_that_kills_three_evaluators_becomes_a_row_and_takes_none_with_it():
    async def die(architectures):
        if "x-x-x" in architectures:
            raise EvaluatorLost("gone")

    (rows,) = score([Evaluator(die), Evaluator(die)], CHILDREN)
    assert [row for row in rows if "error" in row] == [failed("x-x-x", "3 evaluators died: gone")]


def test_a_child_that_hangs_becomes_a_row_and_its_evaluator_is_restarted():
    async def hang(architectures):
        if "y-y-y" in architectures:
            await asyncio.sleep(60)

    evaluator = Evaluator(hang)
    (rows,) = score([evaluator], CHILDREN, timeout_s=0.02)
    assert [row for row in rows if "error" in row] == [failed("y-y-y", "took longer than 0.02 s")]
    assert evaluator.restarted == 2  # of its chunk, then by itself


def test_an_error_of_an_evaluator_reaches_whoever_waits():
    async def fail(_):
        raise KeyError("no such operator")

    with pytest.raises(KeyError, match="no such operator"):
        score([Evaluator(fail)], CHILDREN)
