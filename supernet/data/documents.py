"""Reads a source of text as a stream of documents: files, folders, Hugging Face hub datasets.

Formats: plain text, JSON lines, Parquet, CSV. Holds one document at a time; runs no code from
the data and unpickles nothing. How documents are split is not decided here.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from supernet.data.lines import is_unicode, lines, unreadable
from supernet.errors import InvalidInput
from supernet.settings import DataSettings

MAX_DOCUMENT_CHARS = 100_000
"""Plain-text documents beyond this length are read as several, cut between lines."""
SUFFIXES = {
    "text": (".txt", ".text"),
    "json": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_FILE_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}$")


def read_documents(settings: DataSettings) -> Iterator[str]:
    """The source's documents, without surrounding white space and without empty ones.

    Raises:
        InvalidInput: if the source is missing, unreadable, not UTF-8 or lacks the column. As
            this is a generator, the error comes with the document that could not be read.
    """
    for text in _raw_documents(settings):
        if stripped := text.strip():
            yield stripped


def _raw_documents(settings: DataSettings) -> Iterator[str]:
    if not settings.source.strip():
        raise InvalidInput("data.source must name a text, but is empty; give a file or a folder")
    path = Path(settings.source)
    if settings.format == "hub" or (settings.format == "auto" and _is_hub_name(path, settings)):
        yield from _hub_documents(settings)
        return
    for file, kind in list_files(path, kind=settings.format):
        yield from _file_documents(file, kind=kind, column=settings.column)


def _is_hub_name(path: Path, settings: DataSettings) -> bool:
    name = settings.source
    looks_like_one = _HUB_NAME.fullmatch(name) and not _FILE_SUFFIX.search(name)
    return bool(looks_like_one) and not os.path.lexists(path)


def list_files(path: Path, *, kind: str) -> list[tuple[Path, str]]:
    """The source's files in a fixed order, each with its format."""
    try:
        path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    if path.is_dir():
        return _folder_files(path, kind=kind)
    return [(path, _kind_of(path) or "text" if kind == "auto" else kind)]


def _kind_of(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _folder_files(folder: Path, *, kind: str) -> list[tuple[Path, str]]:
    found: dict[str, list[Path]] = {}
    for path in _walk(folder):
        if file_kind := _kind_of(path):
            found.setdefault(file_kind, []).append(path)
    if kind == "auto":
        kind = _only_kind(folder, found)
    if kind not in found:
        wanted = ", ".join(SUFFIXES[kind])
        raise InvalidInput(
            f"a folder of {kind} needs files that end in {wanted}, but {folder} has none; "
            "check data.source and data.format"
        )
    return [(path, kind) for path in sorted(found[kind])]


def _only_kind(folder: Path, found: dict[str, list[Path]]) -> str:
    if "text" in found or not found:
        return "text"
    if len(found) > 1:
        raise InvalidInput(
            f"a folder must hold files of one format, but {folder} has {sorted(found)}; "
            "set data.format to one of them"
        )
    return next(iter(found))


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error)

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _file_documents(path: Path, *, kind: str, column: str) -> Iterator[str]:
    if kind == "text":
        return _text_documents(path)
    if kind == "json":
        return _json_documents(path, column)
    return _parquet_documents(path, column) if kind == "parquet" else _csv_documents(path, column)


def _text_documents(path: Path) -> Iterator[str]:
    if not _has_blank_line(path):
        yield from lines(path, max_chars=MAX_DOCUMENT_CHARS)
        return
    block: list[str] = []
    length = 0
    for line in lines(path, max_chars=MAX_DOCUMENT_CHARS):
        if not line.strip() or length + len(line) > MAX_DOCUMENT_CHARS:
            yield "".join(block)
            block, length = [], 0
        block.append(line)
        length += len(line)
    yield "".join(block)


def _has_blank_line(path: Path) -> bool:
    """Whether blank lines separate blocks of text; those around all of it do not count."""
    seen_text = seen_blank = False
    for line in lines(path, max_chars=MAX_DOCUMENT_CHARS):
        if not line.strip():
            seen_blank = seen_text
        elif seen_blank:
            return True
        else:
            seen_text = True
    return False


def _json_documents(path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidInput(
                f"each line must be one JSON object, but {where} is not ({error}); "
                "write JSON lines, one object a line"
            ) from None
        if not isinstance(row, dict):
            raise InvalidInput(
                f"each line must be one JSON object, but {where} is a {type(row).__name__}; "
                "write JSON lines, one object a line"
            )
        _require_column(column, row, where)
        yield from _as_text(row[column], column=column, where=where)


def _parquet_documents(path: Path, column: str) -> Iterator[str]:
    try:
        with path.open("rb") as handle:
            table = pq.ParquetFile(handle)
            _require_column(column, table.schema_arrow.names, str(path))
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                for value in batch.column(0):
                    yield from _as_text(value.as_py(), column=column, where=str(path))
    except pa.ArrowInvalid as error:
        raise InvalidInput(
            f"{path} must be a Parquet file, but cannot be read as one ({error}); check data.format"
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"column {column!r} of {path} must be UTF-8, but is not ({error}); rewrite the file"
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _csv_documents(path: Path, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.DictReader(lines(path), strict=True)
    try:
        if rows.fieldnames is None:
            return
        _require_column(column, rows.fieldnames, str(path))
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            yield from _as_text(row[column], column=column, where=where)
    except csv.Error as error:
        raise InvalidInput(
            f"{path} must be a CSV file, but the row after line {rows.line_num} is not one "
            f"({error}); check its quoting and data.format"
        ) from None


def _hub_documents(settings: DataSettings) -> Iterator[str]:
    where, column = f"the hub's {settings.source}", settings.column
    for row in _hub_rows(settings.source):
        _require_column(column, row, where)
        yield from _as_text(row[column], column=column, where=where)


def _hub_rows(source: str) -> Iterator[dict[str, Any]]:
    """The training split of "organisation/name" or "organisation/name:configuration"."""
    from datasets import load_dataset

    name, _, configuration = source.partition(":")
    try:
        yield from load_dataset(name, configuration or None, split="train", streaming=True)
    except Exception as error:  # the hub's client raises many kinds
        raise InvalidInput(
            f"data.source must be a file, a folder or a hub dataset, but {source!r} is not on "
            f"disk and the hub did not give it ({type(error).__name__}: {error}); check the name "
            "and the network"
        ) from error


def _require_column(column: str, columns: Iterable[str], where: str) -> None:
    names = sorted(columns)
    if column not in names:
        raise InvalidInput(
            f"missing column: {where} has no {column!r}, it has {names}; set data.column"
        )


def _as_text(value: Any, *, column: str, where: str) -> Iterator[str]:
    """The value if it is text, nothing if it is null."""
    if value is None:
        return
    if not isinstance(value, str):
        raise InvalidInput(
            f"column {column!r} must hold text, but {where} has a {type(value).__name__}; "
            "set data.column to a column of text"
        )
    if not is_unicode(value):
        raise InvalidInput(
            f"column {column!r} must hold Unicode text, but {where} has half of a surrogate "
            "pair; write it anew"
        )
    yield value
