"""Stand-alone training on the cluster: one Tune trial per model, one CPU core or GPU each."""

import gc
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from ray import tune

from orchestrator.log_lines import log_from_worker
from orchestrator.on_ray.cluster import Cluster
from orchestrator.runs import Run
from orchestrator.training import ModelPlan, retrain_model
from supernet import errors
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.errors import MagicNasError

Report = Callable[[str, dict[str, Any]], None]


def retrain_on_ray(
    run: Run, cluster: Cluster, models: Sequence[ModelPlan], on_progress: Report
) -> None:
    """Train each model stand-alone; `on_progress` takes a model's name and its newest interval.

    Raises:
        MagicNasError: what a trial could not mend.
    """
    trainable = tune.with_parameters(_trial, run_uri=run.store.uri, models=list(models))
    try:
        results = tune.Tuner(
            tune.with_resources(trainable, cluster.slot_resources),
            param_space={"model": tune.grid_search([model.name for model in models])},
            tune_config=tune.TuneConfig(reuse_actors=True),  # imports take seconds
            run_config=tune.RunConfig(
                name="retrain",
                storage_filesystem=run.store.files,
                storage_path=run.store.path("ray"),
                failure_config=tune.FailureConfig(max_failures=2),
                callbacks=[_Progress(on_progress)],
                verbose=0,
            ),
        ).fit()
    finally:
        run.store.delete("ray")
    for result in results:
        failed = (result.metrics or {}).get("failed")
        if failed:
            raise getattr(errors, failed)(result.metrics["message"])
        if result.error:
            raise MagicNasError(f"stand-alone training failed: {result.error}")


class _Progress(tune.Callback):  # type: ignore[misc]
    """Hands every report of a trial to the driver's progress bar."""

    def __init__(self, on_progress: Report) -> None:
        self._on_progress = on_progress

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "step" in result:
            self._on_progress(trial.config["model"], result)


def _trial(config: dict[str, Any], run_uri: str, models: list[ModelPlan]) -> None:
    """Train the model that the trial's configuration names; a process does many, one by one."""
    gc.collect()  # the last trial's engine, which refers to itself, and its model
    run = Run.open(run_uri)
    log_from_worker(run.store.name, "retrain")
    (model,) = [model for model in models if model.name == config["model"]]
    cuda = torch.cuda.is_available()
    os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it; a Tune trial is a world of its own
    if not dist.is_initialized():  # and keeps groups of it for as long as the process lasts
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("nccl" if cuda else "gloo", store=alone, rank=0, world_size=1)
    try:
        retrain_model(
            run,
            model,
            make_engine=partial(DeepSpeedEngine, zero_stage=0, micro_batch=model.recipe.batch_size),
            report=tune.report,
            device=torch.device("cuda" if cuda else "cpu"),
        )
    except MagicNasError as error:
        tune.report({"failed": type(error).__name__, "message": str(error)})
