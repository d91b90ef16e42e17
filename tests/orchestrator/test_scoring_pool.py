"""Children handed to evaluators side by side."""

import asyncio

import pytest

from orchestrator.scoring_pool import MOVES, EvaluatorLost, HostLost, ScoringPool

CHILDREN = [f"{a}-{b}-{c}" for c in "xy" for b in "xy" for a in "xyz"]


class Evaluator:
    """Scores by length after a turn of the loop; `trouble` may raise or wait instead."""

    def __init__(self, trouble=None, *, ready=True, host_answers=True):
        self.chunks, self.trouble, self.began, self.restarted = [], trouble, 0, 0
        self.is_ready, self.answers = asyncio.Event(), host_answers
        if ready:
            self.is_ready.set()

    async def ready(self):
        await self.is_ready.wait()
        self.began += 1

    async def score_together(self, architectures):
        self.chunks.append(list(architectures))
        await asyncio.sleep(0.001)
        if self.trouble is not None:
            await self.trouble(architectures)
        return [{"architecture": text, "score": len(text)} for text in architectures]

    async def host_answers(self):
        return self.answers

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
    assert evaluator.began == 4


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


def test_an_error_of_an_evaluator_reaches_whoever_waits_or_asks_later_and_ends_no_other():
    async def fail(_):
        raise KeyError("no such operator")

    async def wait(_):
        await asyncio.sleep(0.02)

    async def lose(_):
        await asyncio.sleep(0.02)
        raise EvaluatorLost("gone")

    async def run():
        pool = ScoringPool(evaluators, failed=failed)
        for batches in [CHILDREN[:6], CHILDREN[6:]], [CHILDREN]:
            found = await asyncio.gather(*map(pool.score, batches), return_exceptions=True)
            assert [str(error) for error in found] == ["'no such operator'"] * len(batches)
            await asyncio.sleep(0.1)
        return pool.able

    evaluators = [Evaluator(fail), Evaluator(wait), Evaluator(lose)]
    assert asyncio.run(asyncio.wait_for(run(), timeout=5)) == 2
    assert [len(one.chunks) for one in evaluators] == [1, 1, 1], "went on with what nobody awaits"


def test_an_error_while_nobody_waits_reaches_the_next_who_asks():
    class Broken(Evaluator):
        async def ready(self):
            raise KeyError("no such host")

    async def run():
        pool = ScoringPool([Broken(), Evaluator()], failed=failed)
        await asyncio.sleep(0.01)
        await pool.score(CHILDREN)

    with pytest.raises(KeyError, match="no such host"):
        asyncio.run(asyncio.wait_for(run(), timeout=5))


@pytest.mark.parametrize("gives_up", [True, False])
def test_children_that_are_asked_for_again_while_they_are_scored_stop_no_evaluator(gives_up):
    async def wait(_):
        await asyncio.sleep(0.02)

    async def run():
        pool = ScoringPool(evaluators, failed=failed)
        first = asyncio.ensure_future(pool.score(CHILDREN))
        await asyncio.sleep(0.01)
        if gives_up:
            first.cancel()
            await asyncio.sleep(0.1)
        rows = [await pool.score(CHILDREN), await pool.score(CHILDREN)]
        return rows, pool.able

    evaluators = [Evaluator(wait), Evaluator(wait)]
    rows, able = asyncio.run(asyncio.wait_for(run(), timeout=5))
    assert able == 2
    assert [[row["architecture"] for row in batch] for batch in rows] == [CHILDREN] * 2


def test_an_evaluator_that_is_not_ready_holds_up_nobody():
    absent, there = Evaluator(ready=False), Evaluator()
    (rows,) = score([absent, there], CHILDREN)
    assert len(rows) == len(CHILDREN) and not absent.chunks


def test_an_evaluator_that_joins_gets_work():
    async def run():
        pool = ScoringPool([], failed=failed)
        scoring = asyncio.ensure_future(pool.score(CHILDREN))
        await asyncio.sleep(0.01)
        assert not scoring.done() and pool.able == 0
        joined = Evaluator()
        pool.add(joined)
        rows = await scoring
        assert pool.able == 1
        return rows, joined

    rows, joined = asyncio.run(asyncio.wait_for(run(), timeout=20))
    assert sum(map(len, joined.chunks)) == len(rows) == len(CHILDREN)


def test_children_of_a_host_that_is_lost_go_elsewhere_without_counting_an_attempt():
    losses = 0

    async def lose(_):
        nonlocal losses
        losses += 1
        if losses <= 10:
            raise HostLost("gone")

    (rows,) = score([Evaluator(lose)], CHILDREN)
    assert losses > 10 and all("score" in row for row in rows)


def test_children_that_are_always_on_hosts_that_are_lost_are_given_up_at_last():
    async def lose(_):
        raise HostLost("gone")

    (rows,) = score([Evaluator(lose)], CHILDREN[:1])
    assert rows == [failed(CHILDREN[0], f"{MOVES} hosts were lost: gone")]


def test_a_child_that_takes_too_long_on_a_host_that_is_cut_off_is_not_to_blame():
    async def cut(_):
        off.is_ready.clear()
        await asyncio.sleep(60)

    off, there = Evaluator(cut, host_answers=False), Evaluator()
    (rows,) = score([off, there], CHILDREN, timeout_s=0.02)
    assert all("score" in row for row in rows) and not off.restarted
