"""From text to packed splits: what is written, what is refused, and that nothing half stays."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from supernet.data.packed import PackedDataset
from supernet.data.prepare import check_batch, prepare
from supernet.data.splits import SPLITS
from supernet.data.summary import DataSummary
from supernet.errors import InvalidInput, StorageFailed
from supernet.settings import DataSettings

Write = Callable[[str], Path]
SMALL: dict[str, Any] = {"vocab_size": 200, "sequence_length": 16}


def document_numbers(folder: Path, split: str) -> list[int]:
    """The numbers of the synthetic documents that begin in the split."""
    dataset = PackedDataset(folder, split)
    tokens = dataset.rows(np.arange(len(dataset)))
    text = AutoTokenizer.from_pretrained(folder / "tokenizer").decode(
        tokens.reshape(-1), skip_special_tokens=True
    )
    return [int(part.split(".")[0].replace(" ", "")) for part in text.split("document ")[1:]]


def test_splits_share_no_document_and_lose_none(prepared: Path, summary: DataSummary) -> None:
    numbers = {split: document_numbers(prepared, split) for split in SPLITS}
    assert sorted(sum(numbers.values(), [])) == list(range(300))
    assert {split: len(found) for split, found in numbers.items()} == summary.num_documents
    assert summary.num_documents["valid"] == pytest.approx(30, abs=2)


def test_the_summary_describes_what_was_written(prepared: Path, summary: DataSummary) -> None:
    assert DataSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    assert len(tokenizer) == summary.vocab_size <= 200
    assert tokenizer.mask_token_id == summary.mask_id
    assert tokenizer.tokenize("The CAT") == tokenizer.tokenize("the cat")
    for split in SPLITS:
        dataset = PackedDataset(prepared, split)
        rows = dataset.rows(np.arange(len(dataset)))
        assert summary.num_sequences[split] == len(dataset)
        assert summary.num_tokens[split] == (rows != summary.pad_id).sum()
        assert (rows[:, 0] == summary.cls_id).all()
    assert 0 < summary.unigram_nats["valid"] < np.log(summary.vocab_size)


def test_the_same_seed_prepares_the_same_bytes_in_another_process(
    prepared: Path, settings: DataSettings, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from supernet.data.prepare import prepare\n"
        "from supernet.settings import DataSettings\n"
        "prepare(DataSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2]), seed=1)\n"
    )
    again = tmp_path / "again"
    arguments = [sys.executable, "-c", program, settings.model_dump_json(), str(again)]
    subprocess.run(arguments, check=True, env=os.environ | {"PYTHONHASHSEED": "77"})
    for path in sorted(prepared.rglob("*")):
        if path.is_file():
            assert (again / path.relative_to(prepared)).read_bytes() == path.read_bytes(), path


def test_another_seed_splits_otherwise(
    settings: DataSettings, prepared: Path, tmp_path: Path
) -> None:
    prepare(settings, tmp_path / "data", seed=2)
    assert document_numbers(tmp_path / "data", "valid") != document_numbers(prepared, "valid")


def test_a_text_that_is_repeated_stays_within_one_split(text_file: Write, tmp_path: Path) -> None:
    documents = [f"Text {number} says that {number} is here." for number in range(100)]
    path = text_file("\n\n".join(documents * 5))
    summary = prepare(DataSettings(source=str(path), **SMALL), tmp_path / "data", seed=0)
    assert sum(summary.num_documents.values()) == 500
    assert all(count % 5 == 0 for count in summary.num_documents.values())


def test_a_single_long_document_is_split_by_stretches(text_file: Write, tmp_path: Path) -> None:
    words = [f"{a}{b}{c}" for a in "bcdfghklm" for b in "aeiou" for c in "bcdfghklmnprst"]
    unique = [f"{one} {other}" for one in words[:100] for other in words[:60]]
    path = text_file("\n".join(" ".join(unique[i : i + 8]) for i in range(0, 6000, 8)) + "\n\nend")
    summary = prepare(DataSettings(source=str(path), **SMALL), tmp_path / "data", seed=0)
    assert min(summary.num_sequences.values()) > 5
    assert summary.num_sequences["train"] > 5 * summary.num_sequences["valid"]


def test_reading_stops_at_max_mb(corpus_path: Path, tmp_path: Path) -> None:
    settings = DataSettings(source=str(corpus_path), max_mb=0.02, **SMALL)
    summary = prepare(settings, tmp_path / "data", seed=0)
    assert sum(summary.num_tokens.values()) < 10_000


def test_progress_is_told(settings: DataSettings, tmp_path: Path) -> None:
    told: list[str] = []
    prepare(
        settings, tmp_path / "data", seed=0, on_progress=lambda what, done, total: told.append(what)
    )
    assert list(dict.fromkeys(told)) == [
        "reading documents",
        "making the vocabulary",
        "packing train",
        "packing valid",
        "packing test",
        "measuring the splits",
    ]


def test_a_prepared_folder_may_serve_as_the_tokenizer(
    settings: DataSettings, prepared: Path, summary: DataSummary, tmp_path: Path
) -> None:
    named = settings.model_copy(update={"tokenizer": str(prepared / "tokenizer")})
    assert prepare(named, tmp_path / "data", seed=1) == summary


def test_a_tokenizer_without_a_mask_token_is_refused(
    settings: DataSettings, prepared: Path, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "maskless")
    named = settings.model_copy(update={"tokenizer": str(tmp_path / "maskless")})
    with pytest.raises(InvalidInput, match=r"has no \['mask_token'\]"):
        prepare(named, tmp_path / "data", seed=1)


def test_a_tokenizer_that_cannot_be_loaded_is_named(settings: DataSettings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    named = settings.model_copy(update={"tokenizer": str(tmp_path / "empty")})
    with pytest.raises(InvalidInput, match="empty' cannot be loaded"):
        prepare(named, tmp_path / "data", seed=1)


@pytest.mark.parametrize("text", ["", " \n\n\t\n"])
def test_a_text_without_words_is_refused_and_leaves_nothing(
    text_file: Write, tmp_path: Path, text: str
) -> None:
    path = text_file(text)
    with pytest.raises(InvalidInput, match="is empty or only white space"):
        prepare(DataSettings(source=str(path)), tmp_path / "run" / "data", seed=0)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("text", ["A word.", "A few words in a line.\n\n" * 300])
def test_a_text_that_is_too_small_is_refused_with_its_counts(
    text_file: Write, tmp_path: Path, text: str
) -> None:
    path = text_file(text)
    with pytest.raises(InvalidInput, match=r"at least one sequence of 16 .*'valid': 0"):
        prepare(DataSettings(source=str(path), **SMALL), tmp_path / "run" / "data", seed=0)
    assert list((tmp_path / "run").iterdir()) == []


def test_an_interruption_leaves_nothing(settings: DataSettings, tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int | None) -> None:
        if what == "packing valid":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(settings, tmp_path / "run" / "data", seed=0, on_progress=interrupt)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(
    settings: DataSettings, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(InvalidInput, match="delete it or choose another"):
        prepare(settings, tmp_path, seed=0)
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_a_failure_of_storage(
    settings: DataSettings, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="the storage refused"):
        prepare(settings, tmp_path / "file" / "data", seed=0)


def test_a_folder_without_prepared_data_has_no_summary(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="prepare it again"):
        DataSummary.load(tmp_path)
    (tmp_path / "summary.json").write_text('{"vocab_size": 3}')
    with pytest.raises(InvalidInput, match="prepare it again"):
        DataSummary.load(tmp_path)


def test_a_batch_larger_than_the_training_split_is_refused(summary: DataSummary) -> None:
    available = summary.num_sequences["train"]
    check_batch(summary, batch_size=available)
    with pytest.raises(InvalidInput, match=f"has {available} .* smaller batch"):
        check_batch(summary, batch_size=available + 1)


def test_books_are_prepared_with_little_text_in_two_splits(tmp_path: Path) -> None:
    if "MAGIC_NAS_DATA" not in os.environ:
        pytest.skip("MAGIC_NAS_DATA is not set: it names the folder that has corpus/books_pd")
    source = Path(os.environ["MAGIC_NAS_DATA"], "corpus", "books_pd", "dev.txt")
    settings = DataSettings(source=str(source), vocab_size=2000)
    summary = prepare(settings, tmp_path / "data", seed=0)
    assert sum(summary.num_tokens.values()) > 130_000
    assert min(summary.num_sequences.values()) > 50
    assert max(summary.overlap_8gram.values()) < 0.05
    assert 5 < summary.unigram_nats["test"] < 7.5
