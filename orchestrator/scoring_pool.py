"""Feeds evaluators that run side by side: chunks of children go out, their rows come back.

What an evaluator is, an actor or something in this process, is its caller's business: no Ray here.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

Row = dict[str, Any]

ATTEMPTS = 3
"""How often a child is given to an evaluator that dies of it, or beside it."""
MOVES = 20
"""How often a child goes elsewhere because a host was lost, which is hardly the child's fault."""
CHUNKS_AHEAD = 2
"""A chunk is this fraction of an evaluator's share of what waits: early ones are large, so that
children share prefixes, late ones small, so that all evaluators finish together."""


class EvaluatorLost(Exception):
    """An evaluator died while it scored."""


class HostLost(EvaluatorLost):
    """Its host went, or answers no more."""


class PooledEvaluator(Protocol):
    """One evaluator of the pool."""

    async def ready(self) -> None:
        """Wait until it can score, however long."""
        ...

    async def score_together(self, architectures: Sequence[str]) -> list[Row]:
        """A row per architecture.

        Raises:
            EvaluatorLost: if it died.
            HostLost: if its host is gone or silent; what it still finds is not wanted.
        """
        ...

    async def host_answers(self) -> bool:
        """Whether its host can be reached now."""
        ...

    async def restart(self) -> None:
        """Stop what it is doing; `ready` waits for its next process."""
        ...


class ScoringPool:
    """Scores children on evaluators side by side, whichever is free.

    An evaluator that cannot score yet, or no more, holds up nobody: it gets work once it is ready.

    Args:
        failed: makes the row of a child that no evaluator could score, from its error.
        timeout_s: for each child of a chunk; None: for ever.
        grace_s: added to a chunk's time, for the news that its evaluator died to come first.
    """

    def __init__(
        self,
        evaluators: Sequence[PooledEvaluator],
        *,
        failed: Callable[[str, str], Row],
        timeout_s: float | None = None,
        grace_s: float = 0.0,
    ) -> None:
        self._failed = failed
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._queue = _Queue()
        self._awaited: dict[str, asyncio.Future[Row]] = {}
        self._attempts: Counter[str] = Counter()
        self._moves: Counter[str] = Counter()
        self._work = asyncio.Event()
        self._idle = False
        self._fatal: Exception | None = None
        self.able = 0
        """Evaluators that can score now."""
        self._servers: list[asyncio.Future[None]] = []
        for one in evaluators:
            self.add(one)

    def add(self, evaluator: PooledEvaluator) -> None:
        """Give work to this one too."""
        self._servers.append(asyncio.ensure_future(self._serve(evaluator)))

    async def score(self, architectures: Iterable[str]) -> list[Row]:
        """A row per architecture, in their order.

        Raises:
            Exception: what an evaluator raised that was no loss of it, from then on at once.
        """
        if self._fatal is not None:
            raise self._fatal
        loop, texts = asyncio.get_running_loop(), list(architectures)
        for text in texts:
            self._awaited[text] = loop.create_future()
        self._queue.put(texts)
        self._work.set()
        return list(await asyncio.gather(*(self._awaited[text] for text in texts)))

    def was_idle(self) -> bool:
        """Whether an evaluator that had worked waited for more since this was last asked."""
        idle, self._idle = self._idle, False
        return idle

    async def _serve(self, evaluator: PooledEvaluator) -> None:
        try:
            while True:
                await evaluator.ready()
                self.able += 1
                try:
                    await self._score_while_able(evaluator)
                finally:
                    self.able -= 1
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Whoever waits or asks later gets the error; evaluators that go on get no work."""
        self._fatal = self._fatal or error
        for waiting in self._awaited.values():
            if not waiting.done():
                waiting.set_exception(error)
        self._awaited.clear()
        self._queue = _Queue()

    async def _score_while_able(self, evaluator: PooledEvaluator) -> None:
        has_worked = False
        while True:
            while not (chunk := self._queue.take(len(self._servers))):
                self._idle |= has_worked
                self._work.clear()
                await self._work.wait()
            limit = None
            if self._timeout_s is not None:
                limit = self._timeout_s * len(chunk) + self._grace_s
            try:
                rows = await asyncio.wait_for(evaluator.score_together(chunk), limit)
            except HostLost as error:
                return self._elsewhere(chunk, error)
            except EvaluatorLost as error:
                return self._again(chunk, f"{ATTEMPTS} evaluators died: {error}")
            except TimeoutError as error:
                if not await evaluator.host_answers():
                    return self._elsewhere(chunk, HostLost(str(error)))
                self._again(chunk, f"took longer than {self._timeout_s:g} s", alone_is_final=True)
                return await evaluator.restart()
            for text, row in zip(chunk, rows, strict=True):
                self._done(text, row)
            has_worked = True

    def _elsewhere(self, chunk: list[str], error: HostLost) -> None:
        """Give the chunk to whoever is free; that its host was lost counts as no attempt."""
        self._moves.update(chunk)
        for text in self._wanted(chunk):
            if self._moves[text] > MOVES:
                self._done(text, self._failed(text, f"{MOVES} hosts were lost: {error}"))
        self._queue.put(self._wanted(chunk))
        self._work.set()

    def _again(self, chunk: list[str], error: str, *, alone_is_final: bool = False) -> None:
        """Give each child out again by itself, to find the one that is to blame."""
        final = alone_is_final and len(chunk) == 1
        for text in self._wanted(chunk):
            self._attempts[text] += 1
            if final or self._attempts[text] >= ATTEMPTS:
                self._done(text, self._failed(text, error))
            else:
                self._queue.put([text])
        self._work.set()

    def _wanted(self, chunk: list[str]) -> list[str]:
        """Those of it that somebody still waits for."""
        return [text for text in chunk if text in self._awaited]

    def _done(self, text: str, row: Row) -> None:
        self._attempts.pop(text, None)
        self._moves.pop(text, None)
        waiting = self._awaited.pop(text, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(row)


class _Queue:
    """What waits: batches in the order they came, each sorted so that prefixes lie together."""

    def __init__(self) -> None:
        self._batches: deque[deque[str]] = deque()
        self._waiting = 0

    def put(self, texts: Iterable[str]) -> None:
        batch = deque(sorted(texts))
        if batch:
            self._batches.append(batch)
            self._waiting += len(batch)

    def take(self, evaluators: int) -> list[str]:
        """The next chunk, of one batch, where so many evaluators share; empty if nothing waits."""
        if not self._batches:
            return []
        batch = self._batches[0]
        size = min(len(batch), -(-self._waiting // (CHUNKS_AHEAD * evaluators)))
        chunk = [batch.popleft() for _ in range(size)]
        self._waiting -= size
        if not batch:
            self._batches.popleft()
        return chunk
