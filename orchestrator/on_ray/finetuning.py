"""Fine-tuning on the cluster: one Tune trial per fine-tuning, one CPU core or GPU each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune

from evaluators.downstream.heads import TaskData
from orchestrator.finetuning.trial import Job, run_job
from orchestrator.log_lines import log_from_worker
from orchestrator.on_ray.cluster import Cluster
from orchestrator.store import RunStore
from supernet import errors
from supernet.errors import MagicNasError

Row = dict[str, Any]


def finetune_on_ray(
    store: RunStore,
    cluster: Cluster,
    jobs: Sequence[Job],
    data: Mapping[str, TaskData],
    *,
    teacher_logits: Mapping[str, Sequence[Sequence[float]]],
    on_progress: Callable[[Job, int, int], None],
    on_row: Callable[[Row], None],
) -> None:
    """Do every job; `on_row` takes each one's row as it comes.

    Raises:
        MagicNasError: what a trial could not mend; rows of the others are kept.
    """
    by_name = {job.name: job for job in jobs}
    store.delete("ray")  # of a call that was killed
    trainable = tune.with_parameters(
        _trial,
        uri=store.uri,
        jobs=by_name,
        data=dict(data),
        teacher_logits=dict(teacher_logits),
    )
    try:
        results = tune.Tuner(
            tune.with_resources(trainable, cluster.slot_resources),
            param_space={"job": tune.grid_search(list(by_name))},
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name="finetune",
                storage_filesystem=store.files,
                storage_path=store.path("ray"),
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[_Told(by_name, on_progress, on_row)],
                verbose=0,
            ),
        ).fit()
    finally:
        store.delete("ray")
    for result in results:
        failed = (result.metrics or {}).get("failed")
        if failed:
            raise getattr(errors, failed)(result.metrics["message"])
        if result.error:
            raise MagicNasError(f"a fine-tuning failed: {result.error}")


class _Told(tune.Callback):  # type: ignore[misc]
    """Hands every report of a trial to the driver."""

    def __init__(
        self,
        jobs: Mapping[str, Job],
        on_progress: Callable[[Job, int, int], None],
        on_row: Callable[[Row], None],
    ) -> None:
        self._jobs, self._on_progress, self._on_row = jobs, on_progress, on_row

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "row" in result:
            self._on_row(result["row"])
        elif "step" in result:
            self._on_progress(self._jobs[trial.config["job"]], result["step"], result["steps"])


def _trial(
    config: dict[str, Any],
    uri: str,
    jobs: Mapping[str, Job],
    data: Mapping[str, TaskData],
    teacher_logits: Mapping[str, Sequence[Sequence[float]]],
) -> None:
    """Do the job that the trial's configuration names."""
    store, job = RunStore(uri), jobs[config["job"]]
    log_from_worker(store.name, "finetune")
    try:
        row = run_job(
            store,
            job,
            data[job.task],
            teacher_logits=teacher_logits.get(job.task),
            on_progress=lambda step, steps: tune.report({"step": step, "steps": steps}),
        )
    except MagicNasError as error:
        tune.report({"failed": type(error).__name__, "message": str(error)})
    else:
        tune.report({"row": row})
