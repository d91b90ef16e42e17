"""A tiny super-net and what trains it, for the tests of training and of engines."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch
from memory_files import MemoryFiles

from supernet.data.masking import TrainBatches
from supernet.data.packed import PackedDataset, write_packed
from supernet.data.summary import DataSummary
from supernet.engine import PlainEngine
from supernet.model import SuperNet, TextShape
from supernet.sampler import MagicTSampler
from supernet.settings import OptimiserSettings
from supernet.space import OperatorSpec, SearchSpace
from supernet.training import TrainingJob, train

VOCAB, LENGTH, SPECIAL = 40, 8, (0, 1, 2, 3)
SPACE = SearchSpace.uniform(
    3,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "feed_forward": OperatorSpec.of("feed_forward"),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "identity": OperatorSpec.of("identity"),
    },
)
SUMMARY = DataSummary(
    source="numbers",
    vocab_size=VOCAB,
    sequence_length=LENGTH,
    pad_id=0,
    cls_id=1,
    sep_id=2,
    mask_id=3,
    special_ids=SPECIAL,
    num_documents={},
    num_sequences={"train": 64},
    num_tokens={},
    mask_probability=0.3,
    seed=0,
    unigram_nats={},
    overlap_8gram={},
)


_FOLDER = tempfile.TemporaryDirectory(prefix="numbers-")


@functools.cache
def _dataset():
    folder = Path(_FOLDER.name)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(SPECIAL), VOCAB, size=(64, LENGTH))
    rows[:, 0] = 1
    rows[::3, -2:] = 0
    write_packed(folder / "train", iter(rows), length=LENGTH, vocab_size=VOCAB)
    return PackedDataset(folder, "train")


class Recorder:
    """An observer that keeps what it is told; `stop_at`: the step whose row stops training."""

    def __init__(self, stop_at=None):
        self.intervals, self.kept, self.probes, self.anchors = [], [], [], []
        self.stop_at = stop_at

    def on_begin(self, step):
        self.began_at = step

    def on_interval(self, row):
        self.intervals.append(row)
        if row["step"] == self.stop_at:
            raise KeyboardInterrupt

    def on_checkpoint(self, news):
        self.kept += news.intervals
        self.probes += news.probes
        self.anchors += news.anchors


def settings(**changes):
    """A recipe of forty steps with a checkpoint every ten."""
    values = {"steps": 40, "batch_size": 8, "warmup_steps": 5, "checkpoint_steps": 10}
    return OptimiserSettings(**{**values, "learning_rate": 1e-2, **changes})


REPLACED_TOKENS = {
    "objective": "replaced_tokens",
    "generator_hidden_size": 8,
    "generator_pairs": 1,
    "generator_heads": 2,
    "discriminator_weight": 50.0,
}
"""Of a shape, for a super-net with a generator."""


def supernet(*, dropout=0.1, seed=0, **shape):
    """The super-net with weights of a seed."""
    torch.manual_seed(seed)
    sizes = {"pad_id": 0, "hidden_size": 16, "embedding_size": 16, "dropout": dropout}
    return SuperNet(SPACE, TextShape(VOCAB, LENGTH, **sizes, **shape))


def batches(recipe, *, seed=0):
    """Training batches of a recipe."""
    return TrainBatches(_dataset(), SUMMARY, batch_size=recipe.batch_size, seed=seed)


def job(recipe, *, files=None, plan=None, **changes):
    """What `train` takes besides an engine, with a walk of MAGIC-T."""
    return TrainingJob(
        settings=recipe,
        plan=plan or MagicTSampler(SPACE, seed=0).plan,
        batches=batches(recipe),
        files=files or MemoryFiles(),
        folder="supernet",
        seed=0,
        **changes,
    )


def train_plainly(
    recipe, *, files=None, observer=None, resume_from=None, dropout=0.1, shape=None, **changes
):
    """Train the super-net with plain PyTorch; returns the model."""
    model = supernet(dropout=dropout, **(shape or {}))
    if resume_from is not None:
        model.load_state_dict(dict(resume_from.weights))
    engine = PlainEngine(model, recipe)
    train(
        engine,
        job(recipe, files=files, **changes),
        observer or Recorder(),
        resume_from=resume_from,
    )
    return model


def largest_difference(one, other):
    """The largest absolute difference between two sets of weights of the same names."""
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
