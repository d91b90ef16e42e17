"""One actor between the Tune trials and the evaluators: hands out children, keeps their rows.

Imports nothing heavy: a process that holds a handle of the actor imports its module too.

Every trial's batch goes through here, so evaluators never wait for a trial to end, and one
writer alone writes score rows. A child whose evaluator dies goes to another one.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestrator.on_ray.metrics import ScoringMetrics
from orchestrator.on_ray.silence import Watch, raylets
from orchestrator.scoring_pool import EvaluatorLost, HostLost, Row, ScoringPool
from orchestrator.store import RunStore
from supernet.errors import StorageFailed

DEATH_NEWS_S = 3.0
"""Ray waits for a second before it tells that an actor died."""
HEARD_S = 0.5
"""Between two looks whether a node has fallen silent on which children are."""
AGAIN_S = 1.0
WRITES = 3
"""How often rows are given to a storage that refuses them."""


class RayEvaluator:
    """An evaluator actor as the pool knows it; Ray starts it again where it died."""

    def __init__(self, name: str, metrics: ScoringMetrics, watch: Watch) -> None:
        self._name = name
        self._actor: Any = None
        self._metrics = metrics
        self._watch = watch
        self._node = ""
        """On which it was when it was last ready."""
        self._counted = False
        """Whether it was counted as one that begins again, since."""

    async def ready(self) -> None:
        """Wait until Ray has started it, here or elsewhere, and its node answers."""
        while True:
            try:
                self._actor = self._actor or ray.get_actor(self._name)
                node = await self._actor.ready.remote()
                if node not in self._watch.silence:
                    return self._begin_on(node)
            except (RayError, ValueError):  # died, or its name is not known yet
                self._actor = None  # the next of its name may be another actor
            await asyncio.sleep(AGAIN_S)

    def _begin_on(self, node: str) -> None:
        if self._node not in ("", node):  # its host was lost
            self._count_restart()
        self._node, self._counted = node, False

    def _count_restart(self) -> None:
        if not self._counted:
            self._metrics.count_restart()
        self._counted = True

    async def score_together(self, architectures: Sequence[str]) -> list[Row]:
        """A row per architecture."""
        with self._metrics.given_out(architectures):
            try:
                rows = await self._while_heard(self._actor.score_together.remote(architectures))
            except RayTaskError:  # raised by the evaluator's own code, though it may be a RayError
                raise
            except RayError as error:
                if not await self.host_answers():
                    raise HostLost(str(error)) from error
                self._count_restart()
                raise EvaluatorLost(str(error)) from error
        self._metrics.count(rows)
        return rows

    async def _while_heard(self, reference: Any) -> list[Row]:
        answer = asyncio.wrap_future(reference.future())
        try:
            while not answer.done():
                if self._node in self._watch.silence:
                    raise HostLost(f"node {self._node} does not answer")
                await asyncio.wait([answer], timeout=HEARD_S)
            rows: list[Row] = answer.result()
            return rows
        finally:
            answer.cancel()

    async def host_answers(self) -> bool:
        """Whether its node can be reached now."""
        return await asyncio.to_thread(self._watch.answers, self._node)

    async def restart(self) -> None:
        """Kill the process; Ray starts the next one."""
        self._count_restart()
        ray.kill(self._actor, no_restart=False)


class Dispatcher:
    """Scores batches of children on a pool of evaluators.

    Args:
        run_uri: the run's folder.
        evaluators: the names of their actors, which need not be there yet; one whose actor scores
            several batches at a time may be there as often.
        version: of the weights, for the row of a child that no evaluator survived.
        timeout_s: for each child; None: for ever.
    """

    def __init__(
        self, run_uri: str, evaluators: Sequence[str], version: str, timeout_s: float | None
    ) -> None:
        self._store = RunStore(run_uri)
        self._metrics = ScoringMetrics(self._store.name)
        self._evaluators = list(evaluators)
        self._version = version
        self._timeout_s = timeout_s
        self._writer = self._store.row_writer("score")
        self._rows: dict[int, list[Row]] = {}
        self._scored = {row["architecture"] for row in self._store.rows("score")}
        self._pool: ScoringPool | None = None
        self._watch = Watch(raylets)

    async def use(self, evaluators: Sequence[str]) -> int:
        """Give work to these evaluators too, where they are new; says how many can score now."""
        pool = self._pool_of_now()
        for name in evaluators:
            if name not in self._evaluators:
                self._evaluators.append(name)
                pool.add(self._evaluator(name))
        return pool.able

    async def score_batch(self, batch_id: int) -> dict[str, Any]:
        """Score what the batch log names; once this returns, the rows outlive a crash.

        Says how many were `scored`, whether an evaluator was `idle` since the last batch, how many
        `evaluators` can score now, and why the storage `refused` the rows ("": it did not).
        """
        pool = self._pool_of_now()
        batch = self._store.read_json(f"search/batches/{batch_id:06d}.json")
        missing = [text for text in batch["candidates"] if text not in self._scored]
        self._metrics.asked(missing)
        rows = await pool.score(missing)
        for row in rows:
            row["batch_id"] = batch_id
        refused = await self._kept(rows)
        if not refused:
            self._scored.update(missing)
            self._rows[batch_id] = rows
        found = {"scored": len(rows), "idle": pool.was_idle(), "evaluators": pool.able}
        return found | {"refused": refused}

    async def _kept(self, rows: list[Row]) -> str:
        """Write the rows; says what the storage answered that would not take them."""
        for left in reversed(range(WRITES)):
            try:
                self._writer.write(rows)
                break
            except StorageFailed as error:
                if not left:
                    return str(error)
                await asyncio.sleep(AGAIN_S)
        return ""

    def take_rows(self, batch_id: int) -> list[Row]:
        """The rows of a scored batch, once."""
        return self._rows.pop(batch_id, [])

    def _pool_of_now(self) -> ScoringPool:
        if self._pool is None:  # made late, for it wants the actor's running event loop
            self._pool = ScoringPool(
                [self._evaluator(name) for name in self._evaluators],
                failed=self._failed,
                timeout_s=self._timeout_s,
                grace_s=DEATH_NEWS_S,
            )
        return self._pool

    def _evaluator(self, name: str) -> RayEvaluator:
        return RayEvaluator(name, self._metrics, self._watch)

    def _failed(self, architecture: str, error: str) -> Row:
        row = {
            "architecture": architecture,
            "wall_s": 0.0,
            "supernet_version": self._version,
            "error": error,
        }
        self._metrics.count([row])
        return row


DispatcherActor = ray.remote(Dispatcher)
