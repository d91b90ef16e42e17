"""Packing: sequences of one length that lose no token, read back from a memory-mapped file."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supernet.data.packed import ROWS_PER_BATCH, PackedDataset, pack, write_packed
from supernet.errors import InvalidInput

PAD, CLS, SEP = 0, 2, 3


def packed(documents: list[list[int]], *, length: int = 8) -> list[list[int]]:
    return list(pack(documents, length=length, cls_id=CLS, sep_id=SEP, pad_id=PAD))


def test_documents_are_joined_by_a_separator_and_framed_by_marks() -> None:
    assert packed([[10, 11], [12, 13, 14], [15, 16, 17, 18]]) == [
        [CLS, 10, 11, SEP, 12, 13, 14, SEP],
        [CLS, 15, 16, 17, 18, SEP, PAD, PAD],
    ]


def test_a_document_goes_on_in_the_next_sequence() -> None:
    assert packed([list(range(10, 20))]) == [
        [CLS, 10, 11, 12, 13, 14, 15, SEP],
        [CLS, 16, 17, 18, 19, SEP, PAD, PAD],
    ]


def test_a_last_sequence_that_is_not_half_full_is_dropped() -> None:
    assert packed([list(range(10, 17))]) == [[CLS, 10, 11, 12, 13, 14, 15, SEP]]


@given(st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=30), max_size=20))
def test_packing_keeps_all_tokens_in_order_but_those_of_a_dropped_end(
    documents: list[list[int]],
) -> None:
    sequences = packed(documents)
    kept = [token for sequence in sequences for token in sequence if token >= 10]
    given_tokens = [token for document in documents for token in document]
    assert kept == given_tokens[: len(kept)]
    assert len(given_tokens) - len(kept) < 4
    assert all(len(s) == 8 and s[0] == CLS and s.count(CLS) == 1 for s in sequences)
    assert all(s[-1] in (SEP, PAD) for s in sequences)
    assert all(PAD not in s for s in sequences[:-1])


@pytest.mark.parametrize("vocab_size", [100, 65_536, 65_537])
def test_rows_come_back_in_the_order_asked_for(tmp_path: Path, vocab_size: int) -> None:
    rows = np.random.default_rng(0).integers(0, vocab_size, (ROWS_PER_BATCH + 10, 8))
    rows[0, 0] = vocab_size - 1
    count = write_packed(tmp_path / "train", iter(rows.tolist()), length=8, vocab_size=vocab_size)
    dataset = PackedDataset(tmp_path, "train")
    indices = np.array([ROWS_PER_BATCH, 0, ROWS_PER_BATCH + 9, 0])
    assert len(dataset) == count == len(rows)
    assert dataset.rows(indices).dtype == np.int64
    assert np.array_equal(dataset.rows(indices), rows[indices])
    assert np.array_equal(np.concatenate(list(dataset.blocks())), rows)


def test_a_row_that_is_not_there_is_refused(prepared: Path) -> None:
    dataset = PackedDataset(prepared, "valid")
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError, match="must hold, but got"):
            dataset.rows(np.array([index]))


def test_the_datasets_library_reads_the_same_file(prepared: Path) -> None:
    from datasets import Dataset

    theirs = Dataset.from_file(str(prepared / "valid" / "data.arrow"))
    ours = PackedDataset(prepared, "valid")
    assert len(theirs) == len(ours)
    assert theirs[3]["input_ids"] == ours.rows(np.array([3]))[0].tolist()


def test_a_split_that_is_missing_or_cut_off_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="prepare it again"):
        PackedDataset(tmp_path, "train")
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "data.arrow").write_bytes(b"ARROW1 and no more")
    with pytest.raises(InvalidInput, match="prepare it again"):
        PackedDataset(tmp_path, "valid")
