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

DATA = {"vocab_size": 256, "sequence_length": 32}
"""Near-characters: with larger pieces and as little training all children are about as good, and
their order is noise."""
SPACE = SpaceSettings(
    layers=6,
    hidden_size=64,
    dropout=0.0,
    candidates={
        "attention": {"kind": "attention", "heads": 4, "relative_reach": 8},
        "feed_forward": {"kind": "feed_forward", "inner_size": 128},
        "conv3": {"kind": "separable_conv", "kernel_size": 3},
        "conv7": {"kind": "separable_conv", "kernel_size": 7},
    },
)
TRUTH_SEQUENCES, INHERITED_SEQUENCES, EVAL_BATCH = 4096, 1024, 128
ANCHOR_BATCHES = 8


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

    @property
    def key(self) -> str:
        """The same for the same work: a cached result is found by it."""
        work = {**asdict(self), "space": SPACE.model_dump(mode="json"), "data": DATA}
        digest = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()
        return f"{self.kind}-{digest[:16]}"


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
    _train(model, task, own_space, text, observer)
    trained = time.perf_counter()
    sequences = INHERITED_SEQUENCES if task.kind == "supernet" else TRUTH_SEQUENCES
    batches = text.valid(sequences, EVAL_BATCH)
    common = {
        "task": task.key,
        "kind": task.kind,
        "method": task.name if task.kind == "supernet" else None,
        "seed": task.seed,
        "train_loss_nats": observer.last_loss,
        "anchors": len(observer.anchors),
        "anchor": observer.anchors[-1]["architecture"] if observer.anchors else None,
        "train_s": trained - began,
    }
    return [
        {**common, "architecture": str(child), "loss_nats": evaluate(model, child, batches)[0]}
        for child in children
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


class _Observer:
    def __init__(self) -> None:
        self.last_loss = float("nan")
        self.anchors: list[dict[str, Any]] = []

    def on_interval(self, row: dict[str, Any]) -> None:
        self.last_loss = row["loss_nats"]

    def on_checkpoint(self, news: News) -> None:
        self.anchors += news.anchors


def _train(
    model: SuperNet, task: Task, space: SearchSpace, text: _Text, observer: _Observer
) -> None:
    steps = task.recipe["steps"]
    settings = OptimiserSettings(**{**task.recipe, "checkpoint_steps": steps})
    plan = (
        build_sampler(task.sampler, space, seed=task.seed).plan
        if task.kind == "supernet"
        else lambda start, count: [(Architecture.parse(task.name),)] * count
    )
    with tempfile.TemporaryDirectory() as folder:
        job = TrainingJob(
            settings=settings,
            plan=plan,
            batches=text.train(batch_size=settings.batch_size, seed=task.seed),
            files=RunStore(folder),
            folder="supernet",
            seed=task.seed,
            anchors=_anchors(task, space, text, steps),
        )
        train(PlainEngine(model, settings), job, observer, resume_from=None)


def _anchors(task: Task, space: SearchSpace, text: _Text, steps: int) -> Anchors | None:
    if task.align is None:
        return None
    align = AlignSettings(**task.align)
    batches = text.valid(ANCHOR_BATCHES * align.sequences, align.sequences)
    return Anchors(align, space, batches, steps=steps, seed=task.seed)
