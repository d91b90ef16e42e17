"""Text in, packed sequences out: read, split, train the vocabulary, tokenise, pack, measure.

Works in a folder beside the one asked for and renames it at the end, so that nothing half-written
is ever seen. Streams: no step holds the corpus in memory.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from supernet.data.docstrings import installed_docstrings
from supernet.data.documents import MAX_DOCUMENT_CHARS, read_documents
from supernet.data.masking import UNIGRAMS_FILE, target_unigram_nats
from supernet.data.packed import PackedDataset, pack, write_packed
from supernet.data.shingles import token_shingles
from supernet.data.splits import SPLITS, Borders, SplitPlan, key_hash, stretches
from supernet.data.spool import SpoolWriter, read_spool
from supernet.data.summary import DataSummary, check_batch
from supernet.data.vocabulary import encode, make_tokenizer, save_tokenizer
from supernet.errors import InvalidInput, StorageFailed
from supernet.manifest import write_manifest
from supernet.settings import DataSettings

__all__ = ["INSTALLED_DOCS", "check_batch", "prepare"]

Progress = Callable[[str, int, int | None], None]

INSTALLED_DOCS = "installed-docs"
VOCABULARY_CHARS = 50_000_000
"""The vocabulary is trained on an even sample of about so much text."""
MIN_UNITS = 50
"""A corpus with fewer documents is cut into stretches, so that every split gets its share."""
_MIN_STRETCH_CHARS = 1000
_OVERLAP_SAMPLE = 2_000_000
_REPORT_EVERY = 2000


def prepare(
    settings: DataSettings, folder: Path, *, seed: int, on_progress: Progress | None = None
) -> DataSummary:
    """Prepare the settings' source in `folder`, which must not hold anything yet.

    Raises:
        InvalidInput: if the source cannot be used; `folder` is not made then.
        StorageFailed: if the disk refuses a write.
    """
    _require_absent(folder)
    progress = on_progress or _silent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            built = Path(beside, "data")
            built.mkdir()
            summary = _Preparation(settings, built, Path(beside), seed, progress).run()
            os.replace(built, folder)
    except OSError as error:
        raise StorageFailed(
            f"prepared data must be written to {folder}, but the storage refused ({error}); "
            "free space or choose another folder"
        ) from error
    return summary


def _silent(what: str, done: int, total: int | None) -> None:
    pass


def _require_absent(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(
            f"data is prepared in a new folder, but {folder} exists; delete it or choose another"
        )


@dataclass(frozen=True)
class _Preparation:
    """One run of `prepare`: `built` becomes the result, `scratch` is thrown away."""

    settings: DataSettings
    built: Path
    scratch: Path
    seed: int
    progress: Progress

    def run(self) -> DataSummary:
        spool, borders = self._spool_documents()
        tokenizer = self._make_tokenizer(spool, borders)
        summary = self._describe(tokenizer)
        for split in SPLITS:
            summary = self._pack_split(split, spool, borders, tokenizer, summary)
        _require_sequences(summary)
        summary = self._measure(summary)
        summary.save(self.built)
        write_manifest(self.built)
        return summary

    def _spool_documents(self) -> tuple[Path, Borders]:
        spool = self.scratch / "documents.arrow"
        plan = self._write_spool(spool, self._units())
        if not plan.num_keys:
            raise InvalidInput(
                f"the data must hold text, but {self.settings.source!r} is empty or only white "
                "space; check data.source"
            )
        if self.settings.source != INSTALLED_DOCS and plan.num_keys < MIN_UNITS:
            whole, spool = spool, self.scratch / "stretches.arrow"
            plan = self._write_spool(spool, _shorter(whole))
        return spool, plan.borders(
            valid_fraction=self.settings.valid_fraction, test_fraction=self.settings.test_fraction
        )

    def _write_spool(self, path: Path, units: Iterator[tuple[str, str]]) -> SplitPlan:
        plan = SplitPlan()
        with SpoolWriter(path) as writer:
            for number, (key, text) in enumerate(units):
                hashed = key_hash(key, seed=self.seed)
                plan.add(hashed, chars=len(text))
                writer.add(hashed, text)
                if number % _REPORT_EVERY == 0:
                    self.progress("reading documents", number, None)
        return plan

    def _units(self) -> Iterator[tuple[str, str]]:
        """(key of the split, text), at most `max_mb` of them."""
        left = (self.settings.max_mb or float("inf")) * 1e6
        for key, text in self._keyed_documents():
            left -= len(text.encode())
            if left < 0:
                return
            yield key, text

    def _keyed_documents(self) -> Iterator[tuple[str, str]]:
        if self.settings.source == INSTALLED_DOCS:
            yield from installed_docstrings(self.settings.libraries)
            return
        for document in read_documents(self.settings):
            for piece in stretches(document, max_chars=MAX_DOCUMENT_CHARS):
                yield piece, piece

    def _make_tokenizer(self, spool: Path, borders: Borders) -> Any:
        self.progress("making the vocabulary", 0, None)
        tokenizer = make_tokenizer(self.settings, lambda: _sample(spool, borders))
        save_tokenizer(tokenizer, self.built / "tokenizer")
        return tokenizer

    def _describe(self, tokenizer: Any) -> DataSummary:
        return DataSummary(
            source=_source_line(self.settings),
            vocab_size=len(tokenizer),
            sequence_length=self.settings.sequence_length,
            pad_id=tokenizer.pad_token_id,
            cls_id=tokenizer.cls_token_id,
            sep_id=tokenizer.sep_token_id,
            mask_id=tokenizer.mask_token_id,
            special_ids=tuple(sorted(set(tokenizer.all_special_ids))),
            num_documents={},
            num_sequences={},
            num_tokens={},
            mask_probability=self.settings.mask_probability,
            seed=self.seed,
            unigram_nats={},
            overlap_8gram={},
        )

    def _pack_split(
        self, split: str, spool: Path, borders: Borders, tokenizer: Any, summary: DataSummary
    ) -> DataSummary:
        documents = _Counted(_split_texts(spool, borders, split))
        sequences = pack(
            self._encoded(documents, split, tokenizer),
            length=summary.sequence_length,
            cls_id=summary.cls_id,
            sep_id=summary.sep_id,
            pad_id=summary.pad_id,
        )
        written = write_packed(
            self.built / split,
            sequences,
            length=summary.sequence_length,
            vocab_size=summary.vocab_size,
        )
        return replace(
            summary,
            num_documents=summary.num_documents | {split: documents.count},
            num_sequences=summary.num_sequences | {split: written},
        )

    def _encoded(self, documents: "_Counted", split: str, tokenizer: Any) -> Iterator[list[int]]:
        while texts := list(islice(documents, 256)):
            yield from encode(tokenizer, texts)
            self.progress(f"packing {split}", documents.count, None)

    def _measure(self, summary: DataSummary) -> DataSummary:
        """Token counts, the unigram bar, and how much of valid and test is in train."""
        self.progress("measuring the splits", 0, None)
        num_tokens = {}
        for split in SPLITS:
            counts = _count_tokens(PackedDataset(self.built, split), summary)
            num_tokens[split] = int(np.delete(counts, summary.pad_id).sum())
            if split == "train":
                np.save(self.built / UNIGRAMS_FILE, counts, allow_pickle=False)
        held_out = SPLITS[1:]
        nats = {
            split: target_unigram_nats(
                self.built,
                split,
                summary,
                num_sequences=summary.num_sequences[split],
                seed=self.seed,
            )
            for split in held_out
        }
        overlap = {split: _overlap(self.built, split, summary) for split in held_out}
        return replace(summary, num_tokens=num_tokens, unigram_nats=nats, overlap_8gram=overlap)


class _Counted:
    """Iterates over texts and counts them."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.count = 0

    def __iter__(self) -> "_Counted":
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.count += 1
        return text


def _shorter(spool: Path) -> Iterator[tuple[str, str]]:
    """The few documents of a small corpus, cut into about a hundred stretches."""
    total = sum(len(text) for _, text in read_spool(spool))
    max_chars = max(total // (2 * MIN_UNITS), _MIN_STRETCH_CHARS)
    for _, text in read_spool(spool):
        for piece in stretches(text, max_chars=max_chars):
            yield piece, piece


def _split_texts(spool: Path, borders: Borders, split: str) -> Iterator[str]:
    return (text for hashed, text in read_spool(spool) if borders.split_of(hashed) == split)


def _sample(spool: Path, borders: Borders) -> Iterator[str]:
    """Every n-th training document, so that about `VOCABULARY_CHARS` come together."""
    total = sum(len(text) for text in _split_texts(spool, borders, "train"))
    every = total // VOCABULARY_CHARS + 1
    return islice(_split_texts(spool, borders, "train"), 0, None, every)


def _source_line(settings: DataSettings) -> str:
    if settings.source == INSTALLED_DOCS:
        return f"docstrings of the installed {', '.join(settings.libraries)}"
    return settings.source


def _require_sequences(summary: DataSummary) -> None:
    lacking = [split for split in SPLITS if not summary.num_sequences[split]]
    if lacking:
        raise InvalidInput(
            f"every split needs at least one sequence of {summary.sequence_length} tokens, but "
            f"the text gives {summary.num_sequences}; give more text, shorter sequences "
            "(data.sequence_length), or larger valid_fraction and test_fraction"
        )


def _count_tokens(dataset: PackedDataset, summary: DataSummary) -> NDArray[np.int64]:
    counts = np.zeros(summary.vocab_size, dtype=np.int64)
    for rows_BT in dataset.blocks():
        counts += np.bincount(rows_BT.reshape(-1), minlength=summary.vocab_size)
    return counts


def _overlap(folder: Path, split: str, summary: DataSummary) -> float:
    """Fraction of the split's token 8-grams that occur in train, exact up to 2 million of them."""
    special_ids = summary.special_ids
    blocks = PackedDataset(folder, split).blocks()
    parts = [token_shingles(rows_BT, special_ids=special_ids) for rows_BT in blocks]
    held_out = np.concatenate(parts)[:_OVERLAP_SAMPLE]
    if not len(held_out):
        return 0.0
    wanted, counts = np.unique(held_out, return_counts=True)
    found = np.zeros(len(wanted), dtype=bool)
    for rows_BT in PackedDataset(folder, "train").blocks():
        shingles = token_shingles(rows_BT, special_ids=special_ids)
        places = np.searchsorted(wanted, shingles).clip(max=len(wanted) - 1)
        found[places[wanted[places] == shingles]] = True
    return float(counts[found].sum() / counts.sum())
