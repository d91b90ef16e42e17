"""Where training and scoring are done: on Ray, or in this process."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from evaluators.own_scorer import OwnScore
from orchestrator.candidates import CandidateStream
from orchestrator.runs import Run
from orchestrator.training import ModelPlan

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

NEEDS_WORKERS = frozenset({"train", "search", "retrain"})

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Where training and scoring are done."""

    def train(self, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None: ...

    def search(
        self,
        run: Run,
        stream: CandidateStream,
        *,
        checkpoint: str,
        own: OwnScore | None,
        examples: "TaskData | None",
        on_progress: Callable[[CandidateStream], None],
    ) -> float: ...

    def retrain(
        self,
        run: Run,
        models: Sequence[ModelPlan],
        on_progress: Callable[[str, dict[str, Any]], None],
    ) -> None: ...


class LocalWorkers:
    """In this process, without Ray."""

    def __init__(self) -> None:
        from orchestrator import local

        self.train = local.train_locally
        self.search = local.search_locally
        self.retrain = local.retrain_locally


class RayWorkers:
    """On a Ray cluster."""

    def __init__(self, cluster: Any) -> None:
        from orchestrator.on_ray import metrics
        from orchestrator.on_ray.losses import losses_told
        from orchestrator.on_ray.retraining import retrain_on_ray
        from orchestrator.on_ray.search import search_on_ray
        from orchestrator.on_ray.training import train_on_ray

        self._cluster, self._metrics, self._losses_told = cluster, metrics, losses_told
        self._train, self._search, self._retrain = train_on_ray, search_on_ray, retrain_on_ray

    def train(self, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None:
        """See `orchestrator.on_ray.training`."""
        with self._losses_told("training"):
            self._train(run, self._cluster, self._metrics.with_training(run, on_progress))

    def search(
        self,
        run: Run,
        stream: CandidateStream,
        *,
        checkpoint: str,
        own: OwnScore | None,
        examples: "TaskData | None",
        on_progress: Callable[[CandidateStream], None],
    ) -> float:
        """See `orchestrator.on_ray.search`."""
        show = self._metrics.with_search(run, on_progress)
        with self._losses_told("the search"):
            return self._search(
                run,
                self._cluster,
                stream,
                checkpoint=checkpoint,
                own=own,
                examples=examples,
                on_progress=show,
            )

    def retrain(
        self,
        run: Run,
        models: Sequence[ModelPlan],
        on_progress: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """See `orchestrator.on_ray.retraining`."""
        show = self._metrics.with_retraining(run, models, on_progress)
        with self._losses_told("stand-alone training"):
            self._retrain(run, self._cluster, models, show)


@contextmanager
def workers(
    run: Run, *, address: str | None, local: bool, todo: Collection[str]
) -> Iterator[Workers]:
    """Connect to where the work is done, if a stage to do wants it, and check that it can be done.

    Raises:
        InvalidInput: if no cluster answers, has another version of magic-nas on a node, does not
            reach the run's folder from everywhere, or can never have the workers asked for.
    """
    if local or not NEEDS_WORKERS.intersection(todo):
        yield LocalWorkers()
        return
    from orchestrator.on_ray.cluster import connect

    logger.info("connecting to Ray %s", f"at {address}" if address else "on this machine")
    with connect(address, user_code=run.config.user_code, name=run.store.name) as cluster:
        logger.info("Ray has %d CPU cores and %d GPUs", cluster.num_cpus, cluster.num_gpus)
        if "train" in todo:
            cluster.for_training().check(run.config.train.workers, setting="train.workers")
        if "search" in todo:
            cluster.check(run.config.search.evaluators, setting="search.evaluators")
        if address:
            from orchestrator.on_ray.nodes import check_nodes

            check_nodes(run.store)
        yield RayWorkers(cluster)
