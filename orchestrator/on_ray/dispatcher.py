"""One actor between the Tune trials and the evaluators: hands out children, keeps their rows.

Every trial's batch goes through here, so evaluators never wait for a trial to end, and one
writer alone writes score rows. A child whose evaluator dies goes to another one.
"""

import asyncio
from typing import Any

import ray
from ray.exceptions import RayActorError

from orchestrator.on_ray.actors import EvaluatorActor, actor_name, actor_options
from orchestrator.on_ray.cluster import Cluster
from orchestrator.runs import Run
from supernet.space import Architecture

ATTEMPTS = 3
"""How often a child is given to an evaluator before its loss of evaluators becomes its row."""

Row = dict[str, Any]


class Dispatcher:
    """Scores batches of children on a pool of evaluators.

    Args:
        run_uri: the run's folder.
        evaluators: how many evaluators there are.
        version: of the weights, for the row of a child that no evaluator survived.
    """

    def __init__(self, run_uri: str, evaluators: int, version: str) -> None:
        self._run = Run.open(run_uri)
        self._version = version
        self._writer = self._run.store.row_writer("score")
        self._rows: dict[int, list[Row]] = {}
        self._scored = {row["architecture"] for row in self._run.store.rows("score")}
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        for number in range(evaluators):
            self._free.put_nowait(ray.get_actor(evaluator_name(self._run, number)))

    async def score_batch(self, batch_id: int) -> int:
        """Score what the batch log names; once this returns, the rows outlive a crash."""
        batch = self._run.store.read_json(f"search/batches/{batch_id:06d}.json")
        missing = [text for text in batch["candidates"] if text not in self._scored]
        rows = await asyncio.gather(*(self._score(text) for text in missing))
        for row in rows:
            row["batch_id"] = batch_id
        self._writer.write(rows)
        self._scored.update(missing)
        self._rows[batch_id] = rows
        return len(rows)

    def take_rows(self, batch_id: int) -> list[Row]:
        """The rows of a scored batch, once."""
        return self._rows.pop(batch_id, [])

    async def _score(self, architecture: str) -> Row:
        for attempt in range(1, ATTEMPTS + 1):
            evaluator = await self._free.get()
            try:
                row: Row = await evaluator.score.remote(architecture)
                return row
            except RayActorError as error:
                problem = error
            finally:
                self._free.put_nowait(evaluator)
            await asyncio.sleep(attempt)
        return self._lost(architecture, problem)

    def _lost(self, architecture: str, problem: Exception) -> Row:
        cost = self._run.cost_model.cost(Architecture.parse(architecture))
        return {
            "architecture": architecture,
            "val_loss_nats": None,
            "masked_accuracy": None,
            "num_params": cost.num_params,
            "flops": cost.flops,
            "wall_s": 0.0,
            "supernet_version": self._version,
            "error": f"{ATTEMPTS} evaluators died: {problem}",
        }


DispatcherActor = ray.remote(Dispatcher)


def evaluator_name(run: Run, number: int) -> str:
    """The name of one evaluator of the pool."""
    return actor_name(run, f"evaluator-{number}")


def start_evaluators(run: Run, cluster: Cluster, checkpoint: str) -> list[Any]:
    """One evaluator per slot, or as many as the settings ask for; waits until all are ready."""
    count = cluster.workers(run.config.search.evaluators, setting="search.evaluators")
    resources = cluster.slot_resources
    evaluators = [
        EvaluatorActor.options(
            **actor_options(run, f"evaluator-{number}")
            | {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
        ).remote(run.store.uri, checkpoint)
        for number in range(count)
    ]
    ray.get([evaluator.ready.remote() for evaluator in evaluators])
    return evaluators
