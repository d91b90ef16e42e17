"""Super-net training on the cluster: Ray Train places the workers, DeepSpeed moves the weights."""

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util import placement_group_table

from orchestrator.capacity import Resources
from orchestrator.lease import holder_of
from orchestrator.log_lines import log_from_worker
from orchestrator.on_ray.actors import PathSamplerActor, SuperNetActor
from orchestrator.on_ray.cluster import Cluster
from orchestrator.on_ray.names import actor_options, beside_driver
from orchestrator.on_ray.placement import (
    Node,
    Waits,
    nodes,
    plan,
    training_resources,
    waiting,
)
from orchestrator.on_ray.process_group import ProcessGroup
from orchestrator.runs import SUPERNET, Run
from orchestrator.training import train_supernet
from supernet import errors
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.errors import InvalidInput, MagicNasError
from supernet.sampler import Paths

POLL_S = 0.5
WORKER_FAILURES = 3
"""How often lost workers are started again from the last checkpoint before there is a newer one."""

logger = logging.getLogger(__name__)


def train_on_ray(run: Run, cluster: Cluster, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Train the run's super-net; `on_progress` takes the log's newest interval.

    Workers that are lost are started again from the last checkpoint, wherever there is room; where
    there is none, training waits for it and says so.

    Raises:
        InvalidInput: if the workers do not fit the cluster or the batch.
        MagicNasError: what a worker could not mend.
    """
    there = nodes()
    need = training_resources(cluster.slot_resources, there)
    workers = num_training_workers(run, cluster, need, there)
    named = f"{workers} training {'worker' if workers == 1 else 'workers'}"
    logger.info(plan("train", f"{named}, {run.config.train.placement}", need, there))
    supernet = SuperNetActor.options(**actor_options(run, "supernet"), **beside_driver()).remote(
        run.store.uri
    )
    sampler = PathSamplerActor.options(**actor_options(run, "sampler"), **beside_driver()).remote(
        run.store.uri
    )
    torch_trainer = partial(
        TorchTrainer,
        _worker,
        train_loop_config={
            "run": run.store.uri,
            "supernet": supernet,
            "sampler": sampler,
            "holder": holder_of(run.store),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=need,
            placement_strategy=run.config.train.placement.upper(),
        ),
        torch_config=ProcessGroup(backend="nccl" if cluster.use_gpu else "gloo", watcher=supernet),
    )
    waits = Waits()

    def poll() -> None:
        on_progress(ray.get(supernet.progress.remote()))
        if _no_room(need, workers):
            waits.still(lambda: waiting(named, need, nodes()))
        else:
            waits.over()

    try:
        _fit_while_it_gets_on(run, torch_trainer, poll)
    finally:
        failure = ray.get(supernet.failure.remote())
        run.store.delete("ray")
        if failure:
            kind, message = failure
            raise getattr(errors, kind)(message)
        ray.kill(supernet)
        ray.kill(sampler)


def num_training_workers(run: Run, cluster: Cluster, need: Resources, there: Sequence[Node]) -> int:
    """As many as the settings ask for, or as the cluster has and the batch can be split over.

    Raises:
        InvalidInput: if the cluster has fewer, or the batch cannot be split.
    """
    settings = run.config.train
    workers = cluster.for_training().workers(settings.workers, setting="train.workers")
    share = settings.batch_size // settings.accumulation
    if settings.workers is None:
        most = min(workers, max(1, sum(node.slots(need) for node in there)))
        return max(n for n in range(1, most + 1) if share % n == 0)
    if share % workers:
        raise InvalidInput(
            f"train.batch_size must be a multiple of workers x accumulation, but got "
            f"{settings.batch_size}, {workers} and {settings.accumulation}"
        )
    return workers


def _fit_while_it_gets_on(
    run: Run, torch_trainer: Callable[..., TorchTrainer], poll: Callable[[], None]
) -> None:
    """Fit, and once more after too many losses if there is a newer checkpoint than before."""
    for number in itertools.count():
        newest = max(run.store.names(SUPERNET), default="")
        run_config = ray.train.RunConfig(
            name=f"train-{number}",
            storage_filesystem=run.store.files,
            storage_path=run.store.path("ray"),
            failure_config=ray.train.FailureConfig(
                max_failures=WORKER_FAILURES,
                controller_failure_limit=-1,  # such as waits of a minute for room
            ),
        )
        try:
            return _fit(torch_trainer(run_config=run_config), poll)
        except WorkerGroupError:
            if max(run.store.names(SUPERNET), default="") == newest:
                raise


def _fit(trainer: TorchTrainer, poll: Callable[[], None]) -> None:
    """Run `trainer.fit` in a thread, so that this one can show progress and be interrupted."""
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        poll()
    if outcome:
        raise outcome[0]


def _no_room(need: Resources, workers: int) -> bool:
    """Whether workers like these are still to be placed."""
    return any(
        group["state"] in ("PENDING", "RESCHEDULING")
        and len(group["bundles"]) == workers
        and all(bundle == need for bundle in group["bundles"].values())
        for group in placement_group_table().values()
    )


def _worker(config: dict[str, Any]) -> None:
    """One training worker; does nothing once one has told of a failure that stays.

    In the loop all workers meet the same errors, and the first one knows why; before it one may be
    alone with its own, and is seen to fail by Ray Train, which stops the others.
    """
    supernet = config["supernet"]
    if ray.get(supernet.failure.remote()):
        return
    attempt = _Attempt(**config)
    try:
        attempt.train()
    except MagicNasError as error:
        if attempt.in_loop and ray.train.get_context().get_world_rank():
            return
        ray.get(supernet.fail.remote(type(error).__name__, str(error)))
        if not attempt.in_loop:
            raise


class _Attempt:
    """What a worker trains, from the newest checkpoint on."""

    def __init__(self, run: str, supernet: Any, sampler: Any, holder: str | None) -> None:
        self._uri, self._supernet, self._sampler, self._holder = run, supernet, sampler, holder
        self.in_loop = False

    def train(self) -> None:
        run, context = Run.open(self._uri), ray.train.get_context()
        level = logging.INFO if context.get_world_rank() == 0 else logging.ERROR
        log_from_worker(run.store.name, "train", level=level)
        settings = run.config.train
        micro_batch = settings.batch_size // (settings.accumulation * context.get_world_size())
        train_supernet(
            run,
            make_engine=partial(
                DeepSpeedEngine, zero_stage=settings.zero_stage, micro_batch=micro_batch
            ),
            plan=self._plan,
            report=lambda row: self._supernet.report.remote(row),
            device=torch.device(get_device()),
            holder=self._holder,
        )

    def _plan(self, start: int, count: int) -> list[Paths]:
        self.in_loop = True
        paths: list[Paths] = ray.get(self._sampler.plan.remote(start, count))
        return paths
