"""What a training worker does, whoever started it: build the network, resume, train, keep rows.

Called by Ray's workers and by the in-process twin alike; knows neither Ray nor DeepSpeed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from orchestrator.runinfo import library_versions
from orchestrator.runs import SUPERNET, Run
from orchestrator.store import RunStore
from supernet.alignment import Anchors
from supernet.checkpoint import latest_checkpoint
from supernet.engine import Engine
from supernet.loss import evaluate
from supernet.model import SuperNet
from supernet.sampler import Paths
from supernet.settings import OptimiserSettings
from supernet.space import Architecture
from supernet.training import News, TrainingJob, train

Report = Callable[[dict[str, Any]], None]
ANCHOR_BATCHES = 8
"""Held-out batches on which anchors are compared in turn."""

MakeEngine = Callable[[SuperNet, OptimiserSettings], Engine]


@dataclass(frozen=True)
class ModelPlan:
    """A model that is trained stand-alone: "best", "baseline" or "control_<n>"."""

    name: str
    architecture: Architecture

    @property
    def folder(self) -> str:
        """Where its checkpoints and result lie in the run's folder."""
        return f"retrained/{self.name}"


class RowObserver:
    """Keeps the training log as rows, and reports every interval to whoever watches."""

    def __init__(self, store: RunStore, report: Report, *, kind: str, **labels: Any) -> None:
        self._store = store
        self._report = report
        self._kind = kind
        self._labels = labels

    def on_interval(self, row: dict[str, Any]) -> None:
        """Report the interval."""
        self._report(row)

    def on_checkpoint(self, news: News) -> None:
        """Write the rows since the last checkpoint."""
        kinds = {self._kind: news.intervals, "probe": news.probes, "anchor": news.anchors}
        for kind, rows in kinds.items():
            self._store.row_writer(kind).write([{**self._labels, **row} for row in rows])


def train_supernet(
    run: Run,
    *,
    make_engine: MakeEngine,
    plan: Callable[[int, int], list[Paths]],
    report: Report,
    device: torch.device,
) -> None:
    """Train the run's super-net from its newest checkpoint to the last step.

    Raises:
        TrainingDiverged, StorageFailed: see `supernet.training.train`.
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
        manifest=(
            ("sampler", {**settings.sampler, "seed": run.config.seed, "phase": 0}),
            ("versions", library_versions()),
        ),
    )
    torch.manual_seed(run.config.seed)
    model = SuperNet(run.space, run.shape)
    _train(model.to(device), job, make_engine, RowObserver(run.store, report, kind="train"))


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
    settings, architecture = run.config.retrain, model_plan.architecture
    torch.manual_seed(run.config.seed)
    model = SuperNet(run.space.restricted_to(architecture), run.shape).to(device)
    job = TrainingJob(
        settings=settings,
        plan=lambda start, count: [(architecture,)] * count,
        batches=run.train_batches(batch_size=settings.batch_size),
        files=run.store,
        folder=model_plan.folder,
        seed=run.config.seed,
        probe_paths=[architecture],
        probe_batches=[
            batch.to(device)
            for batch in run.eval_batches("valid", sequences=run.config.search.valid_sequences)
        ],
        manifest=(("architecture", str(architecture)), ("versions", library_versions())),
    )
    observer = RetrainObserver(run.store, report, kind="retrain", name=model_plan.name)
    _train(model, job, make_engine, observer)
    run.store.write_json(f"{model_plan.folder}/result.json", _test(run, model_plan, model, device))


def _test(run: Run, model_plan: ModelPlan, model: SuperNet, device: torch.device) -> dict[str, Any]:
    batches = run.eval_batches("test", sequences=run.config.retrain.test_sequences)
    loss, accuracy = evaluate(
        model, model_plan.architecture, [batch.to(device) for batch in batches]
    )
    cost = run.cost_model.cost(model_plan.architecture)
    return {
        "name": model_plan.name,
        "architecture": str(model_plan.architecture),
        "num_params": cost.num_params,
        "flops": cost.flops,
        "test_loss_nats": loss,
        "masked_accuracy": accuracy,
        "train_steps": run.config.retrain.steps,
    }


class RetrainObserver(RowObserver):
    """As `RowObserver`, with the model's valid loss in the same row."""

    def on_checkpoint(self, news: News) -> None:
        """Write the rows since the last checkpoint; the last one carries the valid loss."""
        valid = {row["step"]: row["val_loss_nats"] for row in news.probes}
        joined = [{**row, "val_loss_nats": valid.get(row["step"])} for row in news.intervals]
        super().on_checkpoint(News(joined, [], []))


def _train(
    model: SuperNet, job: TrainingJob, make_engine: MakeEngine, observer: RowObserver
) -> None:
    checkpoint = latest_checkpoint(job.files, job.folder)
    if checkpoint is not None:
        model.load_state_dict(dict(checkpoint.weights))
    engine = make_engine(model, job.settings)
    train(engine, job, observer, resume_from=checkpoint)
