"""The search on the cluster: a Tune `Tuner` whose trials each coordinate a batch of children.

Tune's cost is per trial, so a trial is a batch; the user's searcher sees single candidates.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.search import Searcher

from evaluators.own_scorer import OwnScore
from orchestrator.batch_size import BatchSize
from orchestrator.candidates import CandidateStream
from orchestrator.on_ray.actors import EvaluatorActor, SuperNetActor
from orchestrator.on_ray.batch_trial import BatchTrial
from orchestrator.on_ray.cluster import Cluster
from orchestrator.on_ray.dispatcher import DispatcherActor
from orchestrator.on_ray.fleet import Fleet
from orchestrator.on_ray.names import actor_name, actor_options, beside_driver
from orchestrator.runs import Run
from supernet.errors import MagicNasError, StorageFailed

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

HEAD_NODE = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
"""Trials only wait, so they take no CPU: on the head node, next to nothing of it."""
TRIAL_FAILURES = 2
WORTH_A_PROCESS_S = 5.0
"""Where trials last this long, a further one at a time is worth starting a process for."""


def search_on_ray(
    run: Run,
    cluster: Cluster,
    stream: CandidateStream,
    *,
    checkpoint: str,
    own: OwnScore | None,
    examples: "TaskData | None",
    on_progress: Callable[[CandidateStream], None],
) -> float:
    """Score the stream's candidates with the checkpoint's weights, or by a user's function.

    Args: examples: those of `search.finetune`, for the object store.

    Returns the most memory, in MiB, that the hidden states of an evaluator took.

    Raises:
        StorageFailed: if a batch could not be scored and kept; the same search goes on from there.
        SearchFailing: if most children fail.
    """
    settings = run.config.search
    evaluators = cluster.workers(settings.evaluators, setting="search.evaluators")
    dispatcher = start_dispatcher(run, [], stream.supernet_version)
    actors = [dispatcher]
    shipped = None if examples is None else ray.put(examples)
    try:
        if own is None and settings.scorer is None:
            supernet = SuperNetActor.options(
                **actor_options(run, "supernet"), **beside_driver()
            ).remote(run.store.uri)
            actors.append(supernet)
            ray.get(supernet.publish.remote(checkpoint))
        with Fleet(
            partial(_start_evaluator, run, cluster, checkpoint, own, shipped),
            lambda number: actor_name(run, f"evaluator-{number}"),
            need=cluster.slot_resources,
            wanted=settings.evaluators,
            dispatcher=dispatcher,
        ) as fleet:
            search_with(run, stream, dispatcher, evaluators=evaluators, on_progress=on_progress)
            return fleet.peak_activation_mib()
    finally:
        for actor in actors:
            ray.kill(actor)


def search_with(
    run: Run,
    stream: CandidateStream,
    dispatcher: Any,
    *,
    evaluators: int,
    on_progress: Callable[[CandidateStream], None],
) -> None:
    """Score the stream's candidates on the evaluators behind the dispatcher, so many at first.

    Raises:
        StorageFailed, SearchFailing: as `search_on_ray`.
    """
    settings = run.config.search
    open_size = BatchSize(
        evaluators=evaluators, candidates=stream.total, in_flight=settings.in_flight
    )
    searcher = BatchSearcher(
        stream,
        dispatcher,
        batch_size=settings.batch_size or open_size,
        in_flight=settings.in_flight,
        on_progress=on_progress,
    )
    _tune(dispatcher, searcher)
    if searcher.stopped:
        raise searcher.stopped
    if searcher.failed:
        raise StorageFailed(
            f"batches {searcher.failed} could not be scored; what was scored is kept: run the same "
            f"command again"
        )


def start_dispatcher(run: Run, evaluators: Sequence[str], version: str) -> Any:
    """The dispatcher of a search; the evaluators need not be there yet."""
    options = actor_options(run, "dispatcher") | beside_driver() | {"max_concurrency": 1000}
    return DispatcherActor.options(**options).remote(
        run.store.uri, evaluators, version, run.config.search.timeout_s
    )


def _start_evaluator(
    run: Run,
    cluster: Cluster,
    checkpoint: str,
    own: OwnScore | None,
    examples: ray.ObjectRef | None,
    name: str,
) -> Any:
    resources = cluster.slot_resources
    return EvaluatorActor.options(
        name=name,
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        max_restarts=-1,
    ).remote(run.store.uri, checkpoint, own, examples)


def _tune(dispatcher: Any, searcher: Searcher) -> None:
    """Run the trials; what Tune keeps of them is of no use later, and not part of the run."""
    trainable = tune.with_parameters(BatchTrial, dispatcher=dispatcher)
    with tempfile.TemporaryDirectory(prefix="magic-nas-tune-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, HEAD_NODE),
            tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                failure_config=tune.FailureConfig(max_failures=TRIAL_FAILURES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        ).fit()


class BatchSearcher(Searcher):  # type: ignore[misc]
    """Presents a stream of single candidates to Tune as trials of a batch each."""

    def __init__(
        self,
        stream: CandidateStream,
        dispatcher: Any,
        *,
        batch_size: BatchSize | int,
        in_flight: int,
        on_progress: Callable[[CandidateStream], None],
    ) -> None:
        super().__init__(metric="scored", mode="max")
        self._stream = stream
        self._dispatcher = dispatcher
        self._batch_size = batch_size
        self._in_flight = in_flight
        self._on_progress = on_progress
        self._trials: dict[str, int] = {}
        """Batch by trial."""
        self._processes = 1
        """That trials had at once so far."""
        self._last_s = 0.0
        """How long the trial took that ended last."""
        self.failed: list[int] = []
        self.stopped: MagicNasError | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next batch; None while enough are in flight; FINISHED when all are asked.

        After a batch that could not be scored or kept no other goes out: the cause, such as a full
        disk, would meet it too. Short trials follow each other in one process: Tune would start
        another for a second one, and end it again when the first is free before it is up.
        """
        if self.failed or self.stopped:
            return str(Searcher.FINISHED)
        enough = self._in_flight if self._last_s >= WORTH_A_PROCESS_S else self._processes
        if len(self._trials) >= enough:
            return None
        size = self._batch_size
        try:
            batch = self._stream.next_batch(size if isinstance(size, int) else size.size)
        except MagicNasError as problem:
            self.stopped, batch = problem, None
        if batch is None:
            return str(Searcher.FINISHED)
        self._trials[trial_id] = batch.batch_id
        self._processes = max(self._processes, len(self._trials))
        return {"batch_id": batch.batch_id}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the user's searcher the scores of the batch."""
        batch_id = self._trials.pop(trial_id)
        if error or result is None:
            self.failed.append(batch_id)
            return
        if result["refused"]:
            self.stopped = StorageFailed(result["refused"])
            return
        self._last_s = result["time_this_iter_s"]
        if isinstance(self._batch_size, BatchSize):
            self._batch_size.after(
                seconds=self._last_s, idle=result["idle"], evaluators=result["evaluators"]
            )
        try:
            self._stream.tell(batch_id, ray.get(self._dispatcher.take_rows.remote(batch_id)))
        except MagicNasError as problem:  # raised once Tune has put its trials away
            self.stopped = problem
        self._on_progress(self._stream)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles a searcher to restore it, which we never do."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the stream keeps its state with the batches."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
