"""Reading sources: formats, folders, and what is said when one cannot be read."""

import inspect
import json
import os
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from supernet.data.documents import MAX_DOCUMENT_CHARS, read_documents
from supernet.data.lines import CHUNK_BYTES, lines
from supernet.errors import InvalidInput
from supernet.settings import DataSettings

TEXTS = ["One cat.", "Two\ncats, „quoted“.", 'Three "cats".']
Write = Callable[[str], Path]


def read(source: Path | str, **settings: Any) -> list[str]:
    return list(read_documents(DataSettings(source=str(source), **settings)))


def write_json(path: Path) -> Path:
    path.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS))
    return path


def write_parquet(path: Path) -> Path:
    pq.write_table(pa.table({"id": [1, 2, 3], "text": TEXTS}), path)
    return path


def write_csv(path: Path) -> Path:
    rows = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    path.write_text("id,text\n" + "".join(f"1,{row}\n" for row in rows), encoding="utf-8")
    return path


WRITERS = {"a.jsonl": write_json, "a.parquet": write_parquet, "a.csv": write_csv}


def test_blank_lines_separate_documents(text_file: Write) -> None:
    assert read(text_file("one\ntwo\n\n \nthree\n")) == ["one\ntwo", "three"]


def test_without_blank_lines_each_line_is_a_document(text_file: Write) -> None:
    assert read(text_file("\none\r\ntwo\nthree\n\n")) == ["one", "two", "three"]


def test_a_byte_order_mark_is_no_text(text_file: Write) -> None:
    assert read(text_file("\ufeffone\ntwo")) == ["one", "two"]


def test_a_long_document_without_line_ends_is_read_in_pieces_that_lose_nothing(
    text_file: Write,
) -> None:
    text = "word " * (MAX_DOCUMENT_CHARS // 2)
    pieces = read(text_file(text))
    assert max(map(len, pieces)) <= MAX_DOCUMENT_CHARS
    assert " ".join(pieces).split() == text.split()


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_is_read_from_every_format_with_columns(tmp_path: Path, name: str) -> None:
    assert read(WRITERS[name](tmp_path / name)) == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_column_is_named_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    with pytest.raises(InvalidInput, match=r"missing column: .*'body'.*\['id', 'text'\]"):
        read(path, column="body")


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_column_of_numbers_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput, match="column 'id' must hold text, but .* has a int"):
        read(WRITERS[name](tmp_path / name), column="id")


def test_null_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None]}), path)
    assert read(path) == ["one"]


@pytest.mark.parametrize("line", ["{", "[1]", "7"])
def test_a_line_that_is_no_json_object_is_named_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n' + line + "\n")
    with pytest.raises(InvalidInput, match=r"a\.jsonl, line 2"):
        read(path)


def test_half_a_surrogate_pair_in_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "\\ud800"}\n')
    with pytest.raises(InvalidInput, match="surrogate"):
        read(path)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_text("text")
    with pytest.raises(InvalidInput, match="must be a Parquet file"):
        read(path)


def test_broken_quotes_in_csv_are_refused_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"one"two\n')
    with pytest.raises(InvalidInput, match="the row after line 1 is not one"):
        read(path)


def test_a_folder_is_read_in_order_with_its_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.txt").write_text("third")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b" / "a.text").write_text("second")
    (tmp_path / "notes.md").write_text("not read")
    write_json(tmp_path / "rows.jsonl")
    assert read(tmp_path) == ["first", "second", "third"]


def test_a_folder_without_text_is_read_in_its_one_other_format(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet")
    assert read(tmp_path) == TEXTS * 2


def test_a_folder_of_two_formats_asks_for_the_format(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    write_csv(tmp_path / "b.csv")
    with pytest.raises(InvalidInput, match=r"\['csv', 'parquet'\]; set data.format"):
        read(tmp_path)
    assert read(tmp_path, format="csv") == TEXTS


def test_a_folder_without_files_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"needs files that end in \.txt, \.text"):
        read(tmp_path)


@pytest.mark.parametrize("source", ["./x.txt", "x.txt", "data/x.jsonl", "/no/such", "./corpus"])
def test_a_missing_file_is_said_to_be_missing(source: str) -> None:
    with pytest.raises(InvalidInput, match="missing file"):
        read(source)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(InvalidInput, match="must name a text"):
        read("")


def test_a_file_without_permission_is_said_to_be_unreadable(
    text_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = text_file("one\ntwo")
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def refuse(self: Path, mode: str) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidInput, match=r"text\.txt is not \(Permission denied\)"):
        read(path)


@pytest.mark.parametrize("offset", [5, CHUNK_BYTES - 1, CHUNK_BYTES + 7])
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3("])
def test_text_that_is_not_utf8_is_refused_with_file_and_offset(
    tmp_path: Path, offset: int, bad: bytes
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"a" * offset + bad + b"b")
    with pytest.raises(InvalidInput, match=rf"bad\.txt has byte 0x.. at byte offset {offset} "):
        read(path)


def test_text_cut_off_within_a_character_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"caf\xc3")
    with pytest.raises(InvalidInput, match="offset 3"):
        read(path)


def test_characters_across_chunks_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("é" * CHUNK_BYTES + "\nx\n", encoding="utf-8")
    with path.open("ab") as handle:
        handle.write("aé".encode())
    assert list(lines(path)) == ["é" * CHUNK_BYTES + "\n", "x\n", "aé"]


def test_a_name_that_is_not_on_disk_is_looked_up_on_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, configuration: str | None, **_: Any) -> list[dict[str, str]]:
        asked.append((name, configuration))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read("org/name:en") == read("name") == ["one", "two"]
    assert asked == [("org/name", "en"), ("name", None)]
    with pytest.raises(InvalidInput, match="missing column"):
        read("name", column="body")


def test_a_hub_that_fails_is_named_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InvalidInput, match=r"'org/name' is not on disk.*no route"):
        read("org/name")


def test_documents_are_streamed_and_not_held(tmp_path: Path) -> None:
    path = tmp_path / "large.txt"
    with path.open("w") as handle:
        for number in range(40_000):
            handle.write(f"{number} " + "some words " * 50 + "\n\n")
    documents = read_documents(DataSettings(source=str(path)))
    assert [text.split()[0] for text in islice(documents, 2)] == ["0", "1"]
    tracemalloc.start()
    num_chars = sum(len(text) for text in documents)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert inspect.isgenerator(documents)
    assert num_chars > 20_000_000
    assert peak < 12_000_000
