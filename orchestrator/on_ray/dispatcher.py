"""One actor between the Tune trials and the evaluators: hands out children, keeps their rows.

Imports nothing heavy: a process that holds a handle of the actor imports its module too.

Every trial's batch goes through here, so evaluators never wait for a trial to end, and one
writer alone writes score rows. A child whose evaluator dies goes to another one.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError

from orchestrator.on_ray.metrics import ScoringMetrics
from orchestrator.scoring_pool import EvaluatorLost, Row, ScoringPool
from orchestrator.store import RunStore

DEATH_NEWS_S = 3.0
"""Ray waits for a second before it tells that an actor died."""


class RayEvaluator:
    """An evaluator actor as the pool knows it; Ray starts it again where it died."""

    def __init__(self, name: str, metrics: ScoringMetrics) -> None:
        self._actor = ray.get_actor(name)
        self._metrics = metrics

    async def score_together(self, architectures: Sequence[str]) -> list[Row]:
        """A row per architecture."""
        with self._metrics.given_out(architectures):
            try:
                rows: list[Row] = await self._actor.score_together.remote(architectures)
            except RayActorError as error:
                raise EvaluatorLost(str(error)) from error
        self._metrics.count(rows)
        return rows

    async def revive(self) -> None:
        """Wait until Ray has started it again."""
        while True:
            try:
                await self._actor.ready.remote()
                self._metrics.count_restart()
                return
            except RayActorError:
                await asyncio.sleep(1)

    async def restart(self) -> None:
        """Kill the process and wait for the next one."""
        ray.kill(self._actor, no_restart=False)
        await self.revive()


class Dispatcher:
    """Scores batches of children on a pool of evaluators.

    Args:
        run_uri: the run's folder.
        evaluators: the names of their actors.
        version: of the weights, for the row of a child that no evaluator survived.
        timeout_s: for each child; None: for ever.
    """

    def __init__(
        self, run_uri: str, evaluators: Sequence[str], version: str, timeout_s: float | None
    ) -> None:
        self._store = RunStore(run_uri)
        self._metrics = ScoringMetrics(self._store.name)
        self._evaluators = evaluators
        self._version = version
        self._timeout_s = timeout_s
        self._writer = self._store.row_writer("score")
        self._rows: dict[int, list[Row]] = {}
        self._scored = {row["architecture"] for row in self._store.rows("score")}
        self._pool: ScoringPool | None = None

    async def score_batch(self, batch_id: int) -> dict[str, Any]:
        """Score what the batch log names; once this returns, the rows outlive a crash.

        Says how many were `scored`, and whether an evaluator was `idle` since the last batch.
        """
        if self._pool is None:  # made here, for it wants the actor's running event loop
            self._pool = ScoringPool(
                [RayEvaluator(name, self._metrics) for name in self._evaluators],
                failed=self._failed,
                timeout_s=self._timeout_s,
                grace_s=DEATH_NEWS_S,
            )
        batch = self._store.read_json(f"search/batches/{batch_id:06d}.json")
        missing = [text for text in batch["candidates"] if text not in self._scored]
        self._metrics.asked(missing)
        rows = await self._pool.score(missing)
        for row in rows:
            row["batch_id"] = batch_id
        self._writer.write(rows)
        self._scored.update(missing)
        self._rows[batch_id] = rows
        return {"scored": len(rows), "idle": self._pool.was_idle()}

    def take_rows(self, batch_id: int) -> list[Row]:
        """The rows of a scored batch, once."""
        return self._rows.pop(batch_id, [])

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
