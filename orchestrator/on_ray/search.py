"""The search on the cluster: a Tune `Tuner` whose trials each coordinate a batch of children.

Tune's cost is per trial, so a trial is a batch; the user's searcher sees single candidates.
"""

from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.candidates import CandidateStream
from orchestrator.on_ray.actors import SuperNetActor, actor_options
from orchestrator.on_ray.cluster import Cluster
from orchestrator.on_ray.dispatcher import DispatcherActor, start_evaluators
from orchestrator.runs import Run
from supernet.errors import StorageFailed

HEAD_NODE = tune.PlacementGroupFactory([{"node:__internal_head__": 0.001}])
"""Trials only wait, so they take no CPU: on the head node, next to nothing of it."""
TRIAL_FAILURES = 2


def search_on_ray(
    run: Run,
    cluster: Cluster,
    stream: CandidateStream,
    *,
    checkpoint: str,
    on_progress: Callable[[CandidateStream], None],
) -> None:
    """Score the stream's candidates with the checkpoint's weights.

    Raises:
        StorageFailed: if a batch could not be scored and kept; the same search goes on from there.
    """
    supernet = SuperNetActor.options(**actor_options(run, "supernet")).remote(run.store.uri)
    version = ray.get(supernet.publish.remote(checkpoint))
    evaluators = start_evaluators(run, cluster, checkpoint)
    dispatcher = DispatcherActor.options(
        **actor_options(run, "dispatcher") | {"max_concurrency": 1000}
    ).remote(run.store.uri, len(evaluators), version)
    settings = run.config.search
    searcher = BatchSearcher(
        stream,
        dispatcher,
        batch_size=settings.batch_size,
        in_flight=settings.in_flight,
        on_progress=on_progress,
    )
    try:
        _tune(run, dispatcher, searcher)
    finally:
        run.store.delete("ray")
        for actor in (*evaluators, dispatcher, supernet):
            ray.kill(actor)
    if searcher.failed:
        raise StorageFailed(
            f"batches {searcher.failed} could not be scored; what was scored is kept: run the same "
            f"command again"
        )


def _tune(run: Run, dispatcher: Any, searcher: Searcher) -> None:
    trainable = tune.with_parameters(BatchTrial, dispatcher=dispatcher)
    tune.Tuner(
        tune.with_resources(trainable, HEAD_NODE),
        tune_config=tune.TuneConfig(search_alg=searcher, num_samples=-1, reuse_actors=True),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(run.store.local_path("ray")),
            failure_config=tune.FailureConfig(max_failures=TRIAL_FAILURES),
            verbose=0,
        ),
    ).fit()


class BatchTrial(tune.Trainable):  # type: ignore[misc]
    """A Tune trial: one batch of children, scored by the evaluators behind the dispatcher."""

    def setup(self, config: dict[str, Any], dispatcher: Any) -> None:
        """Take the batch id, all that a trial's configuration holds."""
        self._dispatcher = dispatcher
        self._batch_id = config["batch_id"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Serve another batch in the same process."""
        self._batch_id = new_config["batch_id"]
        return True

    def step(self) -> dict[str, Any]:
        """Wait until the batch is scored and its rows are kept."""
        scored = ray.get(self._dispatcher.score_batch.remote(self._batch_id))
        return {"scored": scored, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save: the batch log and the rows are the state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing to load."""


class BatchSearcher(Searcher):  # type: ignore[misc]
    """Presents a stream of single candidates to Tune as trials of a batch each."""

    def __init__(
        self,
        stream: CandidateStream,
        dispatcher: Any,
        *,
        batch_size: int,
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
        self.failed: list[int] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next batch; None while enough are in flight; FINISHED when all are asked.

        After a batch that could not be scored or kept no other goes out: the cause, such as a full
        disk, would meet it too.
        """
        if self.failed:
            return str(Searcher.FINISHED)
        if len(self._trials) >= self._in_flight:
            return None
        batch = self._stream.next_batch(self._batch_size)
        if batch is None:
            return str(Searcher.FINISHED)
        self._trials[trial_id] = batch.batch_id
        return {"batch_id": batch.batch_id}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the user's searcher the scores of the batch."""
        batch_id = self._trials.pop(trial_id)
        if error:
            self.failed.append(batch_id)
            return
        self._stream.tell(batch_id, ray.get(self._dispatcher.take_rows.remote(batch_id)))
        self._on_progress(self._stream)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the stream keeps its state with the batches."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
