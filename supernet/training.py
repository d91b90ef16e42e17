"""The training loop of one worker: the same for the super-net and for a child on its own.

Paths come from a sampler's plan, batches from the data; what moves the weights is an `Engine`.
Every step is a pure function of the seed, the step and the weights, so a worker that starts
again from a checkpoint goes the same way.
"""

import math
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from supernet.alignment import Anchors
from supernet.checkpoint import Checkpoint, Files, Tensors, save_checkpoint
from supernet.data.masking import Batch, TrainBatches
from supernet.distillation import Teacher
from supernet.engine import Engine
from supernet.errors import MagicNasError, StorageFailed, TrainingDiverged
from supernet.loss import PretrainingLoss, evaluate_each, generator_figures, pretraining_loss
from supernet.sampler import Paths, check_plan
from supernet.settings import OptimiserSettings
from supernet.space import Architecture

LOG_STEPS = 10
"""Steps per row of the training log."""
PLAN_STEPS = 256
"""Steps whose paths are asked for at a time."""


class Observer(Protocol):
    """Who is told how training goes; called on the first worker alone."""

    def on_begin(self, step: int) -> None:
        """Before the first step, or the first after a checkpoint: how many are done."""
        ...

    def on_interval(self, row: dict[str, Any]) -> None:
        """Every LOG_STEPS steps: step, loss_nats, alignment_loss, learning_rate, tokens_per_s.

        With an anchor also anchor_changes, how often it has changed so far. `loss_nats` is what
        is minimised, alignment left out; for replaced tokens it is generator_loss_nats (per masked
        token) + weight x discriminator_loss_nats (per real token), which are there too. With a
        teacher also distillation_loss_nats (per masked token), which `loss_nats` leaves out.
        """
        ...

    def on_checkpoint(self, news: "News") -> None:
        """Before a checkpoint is committed."""
        ...


@dataclass(frozen=True)
class News:
    """What happened since the last checkpoint, as rows."""

    intervals: list[dict[str, Any]]
    probes: list[dict[str, Any]]
    anchors: list[dict[str, Any]]


@dataclass(frozen=True)
class TrainingJob:
    """What one worker trains, and where its checkpoints go."""

    settings: OptimiserSettings
    plan: Callable[[int, int], list[Paths]]
    batches: TrainBatches
    files: Files
    folder: str
    seed: int
    probe_paths: Sequence[Architecture] = ()
    probe_batches: Sequence[Batch] = ()
    anchors: Anchors | None = None
    """MAGIC-A's anchors; none: no alignment."""
    teacher: Teacher | None = None
    """Of masked LM; none: no distillation."""
    manifest: tuple[tuple[str, Any], ...] = ()
    """What the checkpoints' manifests say besides: sampler, versions."""


def learning_rate(settings: OptimiserSettings, step: int) -> float:
    """The learning rate of a step: linear warm-up, then linear, cosine or no decay to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.learning_rate
    left = (settings.steps - step) / max(1, settings.steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return settings.learning_rate * left
    return settings.learning_rate * 0.5 * (1.0 - math.cos(math.pi * left))


def train(
    engine: Engine, job: TrainingJob, observer: Observer, *, resume_from: Checkpoint | None
) -> None:
    """Train to the last step, from a checkpoint whose weights the model already holds.

    Raises:
        TrainingDiverged: if the loss is no longer finite; the last checkpoint is kept.
        StorageFailed: if a checkpoint cannot be written; the ones before are kept.
    """
    loop = Loop(engine, job, observer)
    step = 0
    if resume_from is not None:
        engine.load_optimizer_state(resume_from.optimizer)
        step = resume_from.step
        if job.anchors:
            job.anchors.resume(resume_from.extra.get("anchor"))
    if engine.rank == 0:
        observer.on_begin(step)
    engine.model.train()
    while step < job.settings.steps:
        count = min(PLAN_STEPS, job.settings.steps - step)
        for paths in check_plan(job.plan(step, count), count, engine.model.space):
            loop.step(step, paths)
            step += 1
            if loop.checkpoint_due(step):
                loop.checkpoint(step)


class Loop:
    """What `train` does step by step."""

    def __init__(self, engine: Engine, job: TrainingJob, observer: Observer) -> None:
        self._engine = engine
        self._job = job
        self._observer = observer
        self._rows: list[dict[str, Any]] = []
        self._anchor_rows: list[dict[str, Any]] = []
        self._since_row = _Interval()
        self._last_checkpoint_at = time.monotonic()
        self._device = next(engine.model.parameters()).device

    def step(self, step: int, paths: Paths) -> None:
        """One optimisation step; losses are means over all targets of the step."""
        engine, settings = self._engine, self._job.settings
        self._update_anchor(step, paths)
        batches = self._micro_batches(step)
        sizes = engine.total(
            [sum(batch.num_targets for batch in batches), sum(b.num_tokens for b in batches)]
        )
        targets, tokens = (len(paths) * size for size in sizes)
        engine.begin(paths)
        sums = [0.0, 0.0, 0.0, 0.0]
        for path in paths:
            for part, batch in enumerate(batches):
                own = self._forward_backward(step, part, path, batch, targets, tokens)
                sums = [total + one for total, one in zip(sums, own, strict=True)]
        child_sum, generator_sum, distance_sum, taught_sum = engine.total(sums)
        losses = self._losses(child_sum, generator_sum, targets, tokens)
        if self._job.teacher:
            losses["distillation_loss_nats"] = taught_sum / targets
        loss = losses["loss_nats"]
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss must be finite, but is {loss} at step {step} on the path "
                f"{' + '.join(map(str, paths))}; the last checkpoint is kept: lower the learning "
                f"rate ({settings.learning_rate:g}), lengthen the warm-up or use fp32, and give "
                f"another output folder"
            )
        rate = learning_rate(settings, step)
        engine.update(rate)
        self._log(
            step + 1,
            rate,
            losses={**losses, "alignment_loss": distance_sum / tokens},
            tokens=settings.batch_size * batches[0].input_ids_BT.shape[1],
        )

    def _losses(
        self, child_sum: float, generator_sum: float, targets: float, tokens: float
    ) -> dict[str, float]:
        """The means of the step by their names in the log's rows."""
        model = self._engine.model
        if model.generator is None:
            return {"loss_nats": child_sum / targets}
        generator, child = generator_sum / targets, child_sum / tokens
        return {
            "loss_nats": generator + model.shape.discriminator_weight * child,
            "generator_loss_nats": generator,
            "discriminator_loss_nats": child,
        }

    def _micro_batches(self, step: int) -> list[Batch]:
        parts = self._job.settings.accumulation * self._engine.world
        first = self._engine.rank * self._job.settings.accumulation
        return [
            self._job.batches.at(step, part=part, parts=parts).to(self._device)
            for part in range(first, first + self._job.settings.accumulation)
        ]

    def _forward_backward(
        self,
        step: int,
        part: int,
        path: Architecture,
        batch: Batch,
        targets: float,
        tokens: float,
    ) -> tuple[float, ...]:
        """Backward of this worker's share; summed losses: child, generator, alignment, teacher."""
        model, anchors, teacher = self._engine.model, self._job.anchors, self._job.teacher
        weight = anchors.weight(step) if anchors else 0.0
        stream = f"dropout:{self._job.seed}:{step}:{self._engine.rank}:{part}:{path}"
        torch.manual_seed(zlib.crc32(stream.encode()))
        bf16 = self._job.settings.precision == "bf16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
            found = pretraining_loss(model, path, batch)
            distance_sum = taught_sum = found.child_sum.new_zeros(())
            if teacher:
                taught_sum = teacher.loss_sum(model, path, found.logits_NV, found.seen)
            if weight and anchors:
                distance_sum = anchors.distance(model, path, found.states, found.seen)
        task = _share(found, model.shape.discriminator_weight, targets, tokens)
        if teacher:
            task = task + teacher.weight * taught_sum / targets
        self._engine.backward(task + weight * distance_sum / tokens)
        sums = (found.child_sum, found.generator_sum, distance_sum, taught_sum)
        return tuple(0.0 if one is None else float(one.detach()) for one in sums)

    def _update_anchor(self, step: int, paths: Paths) -> None:
        anchors = self._job.anchors
        changed = anchors.update(step, paths, self._score) if anchors else None
        if changed:
            self._anchor_rows.append(changed.to_row())

    def _score(self, architectures: Sequence[Architecture], batch: Batch) -> list[float]:
        """Valid losses as the first worker has them, so that all workers take the same anchor."""
        model = self._engine.model
        losses = [loss for loss, _ in evaluate_each(model, architectures, [batch])]
        return self._engine.total([loss if self._engine.rank == 0 else 0.0 for loss in losses])

    def _log(self, step: int, rate: float, *, losses: dict[str, float], tokens: int) -> None:
        interval = self._since_row
        interval.add(losses, tokens)
        if step % LOG_STEPS and step != self._job.settings.steps:
            return
        row = {"step": step, "learning_rate": rate, **interval.means(), **self._anchor_changes()}
        self._since_row = _Interval()
        self._rows.append(row)
        if self._engine.rank == 0:
            self._observer.on_interval(row)

    def _anchor_changes(self) -> dict[str, int]:
        anchor = self._job.anchors and self._job.anchors.current
        return {"anchor_changes": anchor.changes} if anchor else {}

    def checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due, by steps, by minutes, or because training ends."""
        settings = self._job.settings
        if step % settings.checkpoint_steps == 0 or step == settings.steps:
            return True
        if step % LOG_STEPS:
            return False
        minutes = (time.monotonic() - self._last_checkpoint_at) / 60
        late = minutes >= settings.checkpoint_minutes and self._engine.rank == 0
        return self._engine.total([float(late)]) != [0.0]

    def checkpoint(self, step: int) -> None:
        """Write a checkpoint; if the first worker cannot, every worker stops."""
        probes = self._probe(step)
        weights, optimizer = self._engine.weights(), self._engine.optimizer_state()
        problem: MagicNasError | None = None
        if self._engine.rank == 0:
            try:
                self._write(step, probes, weights, optimizer)
            except MagicNasError as error:
                problem = error
        if self._engine.total([float(problem is not None)]) != [0.0]:
            raise problem or StorageFailed("the first worker could not write a checkpoint")
        self._last_checkpoint_at = time.monotonic()
        self._rows, self._anchor_rows = [], []

    def _write(
        self, step: int, probes: list[dict[str, Any]], weights: Tensors, optimizer: Tensors
    ) -> None:
        job = self._job
        anchor = job.anchors and job.anchors.current
        self._observer.on_checkpoint(News(self._rows, probes, self._anchor_rows))
        save_checkpoint(
            job.files,
            job.folder,
            step=step,
            weights=weights,
            optimizer=optimizer,
            extra={**dict(job.manifest), "anchor": anchor and anchor.to_row()},
            keep=job.settings.keep_checkpoints,
        )

    def _probe(self, step: int) -> list[dict[str, Any]]:
        """On every worker, for together they may hold one set of weights."""
        model, paths, batches = self._engine.model, self._job.probe_paths, self._job.probe_batches
        if not paths:
            return []
        figures = generator_figures(model, batches)
        return [
            {"step": step, "architecture": str(path), "val_loss_nats": loss, **figures}
            for path, (loss, _) in zip(paths, evaluate_each(model, paths, batches), strict=True)
        ]


def _share(found: PretrainingLoss, weight: float, targets: float, tokens: float) -> torch.Tensor:
    """The share of a batch in the step's mean loss."""
    if found.generator_sum is None:
        return found.child_sum / targets
    return found.generator_sum / targets + weight * found.child_sum / tokens


class _Interval:
    def __init__(self) -> None:
        self._losses: list[dict[str, float]] = []
        self._tokens = 0
        self._began = time.monotonic()

    def add(self, losses: dict[str, float], tokens: int) -> None:
        self._losses.append(losses)
        self._tokens += tokens

    def means(self) -> dict[str, float]:
        seconds = max(1e-9, time.monotonic() - self._began)
        count = len(self._losses)
        return {
            **{name: sum(row[name] for row in self._losses) / count for name in self._losses[0]},
            "tokens_per_s": self._tokens / seconds,
        }
