"""What the ranking study trains: children on their own, and super-nets that score them.

A task is one training run in one process on one thread, by the product's loop with plain PyTorch;
its rows do not depend on when or beside what it ran.
"""

import hashlib
import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.averaged_teacher import AveragedTeacher
from orchestrator.store import RunStore
from supernet.alignment import Anchors
from supernet.data.masking import Batch, TrainBatches, eval_batches
from supernet.data.packed import PackedDataset
from supernet.data.summary import DataSummary
from supernet.engine import PlainEngine
from supernet.loss import evaluate
from supernet.model import SuperNet, TextShape
from supernet.sampler import build_sampler
from supernet.settings import AlignSettings, OptimiserSettings, SpaceSettings
from supernet.space import Architecture, SearchSpace
from supernet.training import News, TrainingJob, train

DATA = {"vocab_size": 256, "sequence_length": 32, "mask_probability": 0.3}
"""Near-characters, and many of them masked: with larger pieces or fewer targets, as little training
leaves all children about as good, or ranks them by how soon they learn at all."""
SPACE = SpaceSettings(
    layers=6,
    hidden_size=64,
    dropout=0.0,
    candidates={
        "attention1": {"kind": "attention", "heads": 1, "relative_reach": 8},
        "attention2": {"kind": "attention", "heads": 2, "relative_reach": 16},
        "attention4": {"kind": "attention", "heads": 4, "relative_reach": 8},
        "ff64": {"kind": "feed_forward", "inner_size": 64},
        "ff256": {"kind": "feed_forward", "inner_size": 256},
        "conv3": {"kind": "separable_conv", "kernel_size": 3},
        "conv5": {"kind": "separable_conv", "kernel_size": 5},
        "conv7": {"kind": "separable_conv", "kernel_size": 7},
        "conv9": {"kind": "separable_conv", "kernel_size": 9},
        "identity": {"kind": "identity"},
    },
)
"""Operators so alike that size does not explain which child is good, and counts do in part."""
TRUTH_SEQUENCES, INHERITED_SEQUENCES, EVAL_BATCH = 4096, 1024, 128
ANCHOR_BATCHES = 8
AVERAGED = 0.25
"""Share of the steps, at the end, over which a super-net's weights are averaged."""
AVERAGED_EVERY = 5
CONSTANTS = (
    *(TRUTH_SEQUENCES, INHERITED_SEQUENCES, EVAL_BATCH),
    *(ANCHOR_BATCHES, AVERAGED, AVERAGED_EVERY),
)


@dataclass(frozen=True)
class Task:
    """One training run; `children` are text forms of architectures."""

    kind: str
    """"truth": one child on its own; "supernet": one super-net that scores all children."""
    name: str
    """The method of a super-net, or the architecture of a child."""
    seed: int
    recipe: dict[str, Any]
    children: tuple[str, ...]
    sampler: dict[str, Any] = field(default_factory=dict)
    align: dict[str, Any] | None = None
    """AlignSettings, and perhaps `teacher_decay` for an `AveragedTeacher`."""

    @property
    def key(self) -> str:
        """The same for the same work: a cached result is found by it."""
        align, teacher = self.align_settings()
        work = {
            **asdict(self),
            "align": align and {**align.model_dump(mode="json"), **teacher},
            "space": SPACE.model_dump(mode="json"),
            "data": DATA,
            "constants": CONSTANTS,
        }
        digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{digest[:16]}"

    def align_settings(self) -> tuple[AlignSettings | None, dict[str, float]]:
        """What is the product's, and what is the averaged teacher's."""
        if self.align is None:
            return None, {}
        settings = dict(self.align)
        teacher = {name: settings.pop(name) for name in ("teacher_decay",) if name in settings}
        return AlignSettings(**settings), teacher


def run_task(task: Task, data: str) -> list[dict[str, Any]]:
    """Train, score, and give a row per child."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    text = _Text(Path(data))
    space = SPACE.build()
    children = [Architecture.parse(child) for child in task.children]
    own_space = space if task.kind == "supernet" else space.restricted_to(children[0])
    torch.manual_seed(task.seed)
    model = SuperNet(own_space, text.shape)
    observer = _Observer()
    engine = _train(model, task, own_space, text, observer)
    trained = time.perf_counter()
    sequences = INHERITED_SEQUENCES if task.kind == "supernet" else TRUTH_SEQUENCES
    batches = text.valid(sequences, EVAL_BATCH)

    def losses() -> list[float]:
        return [evaluate(model, child, batches)[0] for child in children]

    scores = {"loss_nats": losses()}
    if task.kind == "supernet":
        engine.take_averaged()
        scores["averaged_loss_nats"] = losses()
    common = {
        "task": task.key,
        "kind": task.kind,
        "method": task.name if task.kind == "supernet" else None,
        "seed": task.seed,
        "data": json.dumps(DATA),
        "operators": json.dumps(list(SPACE.candidates)),
        "recipe": json.dumps(task.recipe),
        "sampler": json.dumps(task.sampler),
        "align": json.dumps(task.align),
        "train_loss_nats": observer.last_loss,
        "anchors": len(observer.anchors),
        "anchor": observer.anchors[-1]["architecture"] if observer.anchors else None,
        "train_s": trained - began,
    }
    return [
        {
            **common,
            "architecture": str(child),
            **{name: found[n] for name, found in scores.items()},
        }
        for n, child in enumerate(children)
    ]


class _Text:
    """The prepared text and what is read from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = DataSummary.load(folder)
        self.shape = TextShape.of(
            SPACE,
            vocab_size=self.summary.vocab_size,
            max_length=self.summary.sequence_length,
            pad_id=self.summary.pad_id,
        )

    def train(self, *, batch_size: int, seed: int) -> TrainBatches:
        return TrainBatches(
            PackedDataset(self.folder, "train"), self.summary, batch_size=batch_size, seed=seed
        )

    def valid(self, sequences: int, batch_size: int) -> list[Batch]:
        return eval_batches(
            PackedDataset(self.folder, "valid"),
            self.summary,
            num_sequences=sequences,
            batch_size=batch_size,
            seed=0,
        )


class _Averaging(PlainEngine):
    """Keeps the mean of the weights over the last AVERAGED of the steps."""

    def __init__(self, model: SuperNet, settings: OptimiserSettings) -> None:
        super().__init__(model, settings)
        self._left, self._window = settings.steps, settings.steps * AVERAGED
        self._mean, self._count = [p.detach().clone() for p in model.parameters()], 0

    def update(self, learning_rate: float) -> None:
        """Take the optimiser step."""
        super().update(learning_rate)
        self._left -= 1
        if self._left < self._window and self._left % AVERAGED_EVERY == 0:
            self._count += 1
            now = [p.detach() for p in self.model.parameters()]
            torch._foreach_lerp_(self._mean, now, 1 / self._count)

    def take_averaged(self) -> None:
        """Put the mean in the weights' place."""
        with torch.no_grad():
            for parameter, mean in zip(self.model.parameters(), self._mean, strict=True):
                parameter.copy_(mean)


class _Observer:
    def __init__(self) -> None:
        self.last_loss = float("nan")
        self.anchors: list[dict[str, Any]] = []

    def on_begin(self, step: int) -> None:
        pass

    def on_interval(self, row: dict[str, Any]) -> None:
        self.last_loss = row["loss_nats"]

    def on_checkpoint(self, news: News) -> None:
        self.anchors += news.anchors


def _train(
    model: SuperNet, task: Task, space: SearchSpace, text: _Text, observer: _Observer
) -> _Averaging:
    steps = task.recipe["steps"]
    settings = OptimiserSettings(**{**task.recipe, "checkpoint_steps": steps})
    sampler = build_sampler(task.sampler or {"name": "uniform"}, space, seed=task.seed)
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(
            settings=settings,
            plan=sampler.plan,
            batches=text.train(batch_size=settings.batch_size, seed=task.seed),
            files=RunStore(folder),
            folder="supernet",
            seed=task.seed,
            anchors=_anchors(task, model, text, steps),
        )
        engine = _Averaging(model, settings)
        train(engine, job, observer, resume_from=None)
    return engine


def _anchors(task: Task, model: SuperNet, text: _Text, steps: int) -> Anchors | None:
    align, teacher = task.align_settings()
    if align is None:
        return None
    batches = text.valid(ANCHOR_BATCHES * align.sequences, align.sequences)
    common = {"steps": steps, "seed": task.seed}
    if not teacher:
        return Anchors(align, model.space, batches, **common)
    decay = teacher["teacher_decay"]
    return AveragedTeacher(align, model.space, batches, **common, model=model, decay=decay)
