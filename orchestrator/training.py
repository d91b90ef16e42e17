"""What a training worker does, whoever started it: build the network, resume, train, keep rows.

Called by Ray's workers and by the in-process twin alike; knows neither Ray nor DeepSpeed.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.lease import holder_of
from orchestrator.runinfo import library_versions
from orchestrator.runs import SUPERNET, Run
from orchestrator.store import RunStore
from orchestrator.teacher import LARGEST, named_teacher
from supernet.alignment import Anchors
from supernet.checkpoint import latest_checkpoint
from supernet.data.masking import TrainBatches
from supernet.data.packed import PackedDataset
from supernet.distillation import Teacher
from supernet.engine import Engine
from supernet.errors import RunConflict, TrainingDiverged
from supernet.loss import evaluate, generator_figures
from supernet.model import SuperNet
from supernet.sampler import Paths
from supernet.settings import OptimiserSettings
from supernet.space import Architecture
from supernet.training import News, Observer, TrainingJob, train

Report = Callable[[dict[str, Any]], None]
ANCHOR_BATCHES = 8
"""Held-out batches on which anchors are compared in turn."""

MakeEngine = Callable[[SuperNet, OptimiserSettings], Engine]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelPlan:
    """A model to train stand-alone: "best", "baseline", "control_<n>", or a child of a ranking.

    Args:
        name: no other model that is trained at the same time has it.
        folder: where its checkpoints and `result.json` lie in the run's folder.
        recipe: how it is trained.
        seed: of its weights, its batches and its dropout.
        result_only: score it on the valid split, and keep neither checkpoints nor a training log.
            If its training diverges, that is its result.
    """

    name: str
    architecture: Architecture
    folder: str
    recipe: OptimiserSettings
    seed: int
    result_only: bool = False


class RowObserver:
    """Keeps the training log as rows, and reports every interval to whoever watches.

    Args:
        holder: of the run's lease, whose driver started this; None: nobody is asked.
    """

    def __init__(
        self,
        store: RunStore,
        report: Report,
        *,
        kind: str,
        holder: str | None = None,
        **labels: Any,
    ) -> None:
        self._store = store
        self._report = report
        self._kind = kind
        self._holder = holder
        self._labels = labels

    def on_begin(self, step: int) -> None:
        """Remove rows of later steps: their checkpoint was never whole, and they come again.

        Raises:
            RunConflict: if another driver has taken over the run.
        """
        self._check_holder()
        for kind in (self._kind, "probe", "anchor"):
            self._store.drop_rows(kind, self._labels.get("name", ""), after=step)

    def on_interval(self, row: dict[str, Any]) -> None:
        """Report the interval."""
        self._report(row)

    def on_checkpoint(self, news: News) -> None:
        """Write the rows since the last checkpoint.

        Raises:
            RunConflict: if another driver has taken over the run.
        """
        self._check_holder()
        kinds = {self._kind: news.intervals, "probe": news.probes, "anchor": news.anchors}
        for kind, rows in kinds.items():
            writer = self._store.row_writer(kind, self._labels.get("name", ""))
            writer.write([{**self._labels, **row} for row in rows])

    def _check_holder(self) -> None:
        if self._holder and holder_of(self._store) not in (self._holder, None):
            raise RunConflict(
                f"one driver at a time works on a run, but another one than started this training "
                f"has {self._store.uri} now: nothing more is kept of it"
            )


def train_supernet(
    run: Run,
    *,
    make_engine: MakeEngine,
    plan: Callable[[int, int], list[Paths]],
    report: Report,
    device: torch.device,
    holder: str | None = None,
) -> None:
    """Train the run's super-net from its newest checkpoint to the last step.

    Args:
        holder: of the run's lease; see `RowObserver`.

    Raises:
        TrainingDiverged, StorageFailed: see `supernet.training.train`.
        RunConflict: if another driver takes over the run.
    """
    settings = run.config.train
    job = TrainingJob(
        settings=settings,
        plan=plan,
        batches=run.train_batches(batch_size=settings.batch_size),
        files=run.store,
        folder=SUPERNET,
        seed=run.config.seed,
        probe_paths=run.probe_paths(),
        probe_batches=[
            batch.to(device)
            for batch in run.eval_batches("valid", sequences=settings.probe_sequences)
        ],
        anchors=_anchors(run, device),
        teacher=_largest_path(run) or named_teacher(run, device),
        manifest=(
            ("sampler", {**settings.sampler, "seed": run.config.seed, "phase": 0}),
            ("versions", library_versions()),
        ),
    )
    torch.manual_seed(run.config.seed)
    model = SuperNet(run.space, run.shape)
    observer = RowObserver(run.store, report, kind="train", holder=holder)
    _train(model.to(device), job, make_engine, observer)


def _largest_path(run: Run) -> Teacher | None:
    """In-place distillation, if the run wants it."""
    teacher = run.config.pretraining.teacher
    if teacher is None or teacher.model != LARGEST:
        return None
    return Teacher(teacher.weight, teacher.temperature, path=run.cost_model.dearest("num_params"))


def _anchors(run: Run, device: torch.device) -> Anchors | None:
    """MAGIC-A's anchors, if the run wants alignment."""
    align = run.config.train.align
    if align is None:
        return None
    batches = run.eval_batches(
        "valid", sequences=ANCHOR_BATCHES * align.sequences, batch_size=align.sequences
    )
    return Anchors(
        align,
        run.space,
        [batch.to(device) for batch in batches],
        steps=run.config.train.steps,
        seed=run.config.seed,
    )


def retrain_model(
    run: Run,
    model_plan: ModelPlan,
    *,
    make_engine: MakeEngine,
    report: Report,
    device: torch.device,
) -> None:
    """Train one child stand-alone from fresh weights and write its result.

    Raises:
        TrainingDiverged, StorageFailed: see `supernet.training.train`.
    """
    torch.manual_seed(model_plan.seed)
    space = run.space.restricted_to(model_plan.architecture)
    model = SuperNet(space, run.shape).to(device)
    observer: Observer = RetrainObserver(run.store, report, kind="retrain", name=model_plan.name)
    if model_plan.result_only:
        observer = Watcher(report)
    try:
        _train(model, _standalone_job(run, model_plan, device), make_engine, observer)
        measured = _measure(run, model_plan, model, device)
    except TrainingDiverged as error:
        if not model_plan.result_only:
            raise
        measured = {"error": str(error)}
    _write_result(run, model_plan, measured)


def _standalone_job(run: Run, model_plan: ModelPlan, device: torch.device) -> TrainingJob:
    recipe, architecture = model_plan.recipe, model_plan.architecture
    dataset = PackedDataset(run.data_folder, "train")
    return TrainingJob(
        settings=recipe,
        plan=lambda start, count: [(architecture,)] * count,
        batches=TrainBatches(
            dataset, run.summary, batch_size=recipe.batch_size, seed=model_plan.seed
        ),
        files=run.store,
        folder=model_plan.folder,
        seed=model_plan.seed,
        probe_paths=[] if model_plan.result_only else [architecture],
        probe_batches=[
            batch.to(device)
            for batch in run.eval_batches("valid", sequences=run.config.search.valid_sequences)
        ],
        teacher=named_teacher(run, device),
        manifest=(("architecture", str(architecture)), ("versions", library_versions())),
    )


def _measure(
    run: Run, model_plan: ModelPlan, model: SuperNet, device: torch.device
) -> dict[str, Any]:
    if model_plan.result_only:
        split, metric, sequences = "valid", "val_loss_nats", run.config.search.valid_sequences
    else:
        split, metric, sequences = "test", "test_loss_nats", run.config.retrain.test_sequences
    batches = [batch.to(device) for batch in run.eval_batches(split, sequences=sequences)]
    loss, accuracy = evaluate(model, model_plan.architecture, batches)
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"{model_plan.architecture} must end with a finite loss, but got {loss}: lower the "
            f"learning rate ({model_plan.recipe.learning_rate:g}) or lengthen the warm-up"
        )
    return {metric: loss, "masked_accuracy": accuracy, **generator_figures(model, batches)}


def _write_result(run: Run, model_plan: ModelPlan, measured: dict[str, Any]) -> None:
    cost = run.cost_model.cost(model_plan.architecture)
    result = {
        "name": model_plan.name,
        "architecture": str(model_plan.architecture),
        "num_params": cost.num_params,
        "flops": cost.flops,
        "train_steps": model_plan.recipe.steps,
        "seed": model_plan.seed,
        **measured,
    }
    run.store.write_json(f"{model_plan.folder}/result.json", result)
    if model_plan.result_only:
        for checkpoint in set(run.store.names(model_plan.folder)) - {"result.json"}:
            run.store.delete(f"{model_plan.folder}/{checkpoint}")


class RetrainObserver(RowObserver):
    """As `RowObserver`, with the model's valid loss in the same row."""

    def on_checkpoint(self, news: News) -> None:
        """Write the rows since the last checkpoint; the last one carries the valid loss."""
        valid = {row["step"]: row["val_loss_nats"] for row in news.probes}
        joined = [{**row, "val_loss_nats": valid.get(row["step"])} for row in news.intervals]
        super().on_checkpoint(News(joined, [], []))


class Watcher:
    """Reports every interval and keeps nothing."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def on_begin(self, step: int) -> None:
        """Nothing was kept."""

    def on_interval(self, row: dict[str, Any]) -> None:
        """Report the interval."""
        self._report(row)

    def on_checkpoint(self, news: News) -> None:
        """Keep nothing."""


def _train(model: SuperNet, job: TrainingJob, make_engine: MakeEngine, observer: Observer) -> None:
    checkpoint = latest_checkpoint(job.files, job.folder)
    if checkpoint is not None:
        logger.info("%s: goes on from step %d", job.folder, checkpoint.step)
        model.load_state_dict(dict(checkpoint.weights))
    engine = make_engine(model, job.settings)
    train(engine, job, observer, resume_from=checkpoint)
