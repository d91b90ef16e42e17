"""The spaces and the text that the benchmarks of training run on."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from supernet.data.masking import TrainBatches
from supernet.data.packed import PackedDataset, write_packed
from supernet.data.prepare import prepare
from supernet.data.summary import DataSummary
from supernet.model import SuperNet, TextShape
from supernet.settings import DataSettings
from supernet.space import OperatorSpec, SearchSpace

BOOKS = "corpus/books_pd"
"""Under $MAGIC_NAS_DATA: real text."""
_SPECIAL = (0, 1, 2, 3)


@dataclass(frozen=True)
class Text:
    """Packed sequences in a folder; `source` says what they are."""

    folder: Path
    summary: DataSummary
    source: str

    def batches(self, *, batch_size: int, seed: int) -> TrainBatches:
        """Training batches."""
        dataset = PackedDataset(self.folder, "train")
        return TrainBatches(dataset, self.summary, batch_size=batch_size, seed=seed)


def prepare_text(folder: Path, *, vocab_size: int, length: int, max_mb: float = 4.0) -> Text:
    """Books from $MAGIC_NAS_DATA if it is set, else random tokens."""
    root = os.environ.get("MAGIC_NAS_DATA")
    books = Path(root) / BOOKS if root else None
    if books is None or not books.exists():
        summary = _random_tokens(folder, vocab_size=vocab_size, length=length)
        return Text(folder, summary, "random tokens")
    settings = DataSettings(
        source=str(books), vocab_size=vocab_size, sequence_length=length, max_mb=max_mb
    )
    return Text(folder, prepare(settings, folder, seed=0), "books")


def _random_tokens(folder: Path, *, vocab_size: int, length: int) -> DataSummary:
    rows = np.random.default_rng(0).integers(len(_SPECIAL), vocab_size, size=(4096, length))
    folder.mkdir(parents=True)
    write_packed(folder / "train", iter(rows), length=length, vocab_size=vocab_size)
    return DataSummary(
        source="random tokens",
        vocab_size=vocab_size,
        sequence_length=length,
        pad_id=0,
        cls_id=1,
        sep_id=2,
        mask_id=3,
        special_ids=_SPECIAL,
        num_documents={},
        num_sequences={"train": len(rows)},
        num_tokens={},
        mask_probability=0.15,
        seed=0,
        unigram_nats={},
        overlap_8gram={},
    )


def quickstart_space(hidden_size: int) -> SearchSpace:
    """The quickstart's space: 8 layers of 5 operators, as wide as asked for."""
    kinds = {
        "attention": OperatorSpec.of("attention", heads=4),
        "feed_forward": OperatorSpec.of("feed_forward", inner_size=4 * hidden_size),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "conv7": OperatorSpec.of("separable_conv", kernel_size=7),
        "identity": OperatorSpec.of("identity"),
    }
    return SearchSpace.uniform(8, kinds)


def operators_624_space(hidden_size: int) -> SearchSpace:
    """24 layers of 26 operators of one width, which differ in kernel, inner width and heads."""
    kinds = {
        f"conv{kernel}": OperatorSpec.of("separable_conv", kernel_size=kernel)
        for kernel in range(3, 23, 2)
    }
    kinds |= {
        f"feed_forward{inner}": OperatorSpec.of("feed_forward", inner_size=inner)
        for inner in range(hidden_size, 13 * hidden_size // 4 + 1, hidden_size // 4)
    }
    kinds |= {f"attention{heads}": OperatorSpec.of("attention", heads=heads) for heads in (1, 2, 4)}
    kinds |= {f"wide{heads}": OperatorSpec.of("attention", heads=heads) for heads in (8, 16, 32)}
    return SearchSpace.uniform(24, kinds)


def supernet(space: SearchSpace, text: Text, *, hidden_size: int, seed: int) -> SuperNet:
    """A super-net without dropout, with weights of a seed."""
    torch.manual_seed(seed)
    shape = TextShape(
        vocab_size=text.summary.vocab_size,
        max_length=text.summary.sequence_length,
        pad_id=text.summary.pad_id,
        hidden_size=hidden_size,
        embedding_size=hidden_size,
        dropout=0.0,
    )
    return SuperNet(space, shape)
