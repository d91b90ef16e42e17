"""Tab-separated files as GLUE has them: no quoting, a header or none; every row is checked."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from supernet.data.lines import lines
from supernet.errors import InvalidInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """The wanted fields of one row, and its line in the file, counted from 1."""

    line: int
    fields: tuple[str, ...]


def read_rows(
    path: Path, wanted: tuple[str, ...], *, columns: tuple[str, ...] = (), broken: float = 0.0
) -> list[Row]:
    """The rows of the file with the wanted columns, in that order.

    A byte-order mark, `\\r\\n` and blank lines at the end are passed over.

    Args:
        path: the file.
        wanted: names of columns.
        columns: all names, of a file without a header; empty: the first line has them.
        broken: share of the rows that may have a wrong number of fields; they are dropped with
            a warning.

    Raises:
        InvalidInput: if the file is missing, empty, not UTF-8, lacks a wanted column, or more of
            its rows than `broken` have another number of fields than it has columns.
    """
    numbered = _numbered_lines(path)
    names = columns or _header(path, numbered)
    places = _places(path, wanted, names)
    rows, odd = [], []
    for number, line in numbered:
        fields = line.split("\t")
        if len(fields) == len(names):
            rows.append(Row(number, tuple(fields[place] for place in places)))
        else:
            odd.append((number, len(fields)))
    _refuse_odd(path, odd, num_rows=len(rows) + len(odd), wanted=len(names), share=broken)
    if not rows:
        raise InvalidInput(f"a task's file must have rows, but {path} has none; get it again")
    return rows


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their number from 1; blank ones only where others follow."""
    blank: list[tuple[int, str]] = []
    for number, line in enumerate(lines(path), start=1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield from blank
            blank.clear()
            yield number, text
        else:
            blank.append((number, text))


def _header(path: Path, numbered: Iterator[tuple[int, str]]) -> tuple[str, ...]:
    _, line = next(numbered, (0, ""))
    if not line.strip():
        raise InvalidInput(
            f"a task's file must have a header and rows, but {path} is empty or begins with a "
            "blank line; get it again"
        )
    return tuple(name.strip() for name in line.split("\t"))


def _places(path: Path, wanted: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    if missing := [name for name in wanted if name not in names]:
        raise InvalidInput(
            f"missing columns: {path} must have {missing}, but its header has {list(names)}; "
            "check that it is this task's file, in its original format"
        )
    return [names.index(name) for name in wanted]


def _refuse_odd(
    path: Path, odd: list[tuple[int, int]], *, num_rows: int, wanted: int, share: float
) -> None:
    if not odd:
        return
    line, number = odd[0]
    said = f"line {line} of {path} has {number} fields where {wanted} are wanted"
    if len(odd) > share * num_rows:
        more = f", and so have {len(odd) - 1} more lines" if len(odd) > 1 else ""
        raise InvalidInput(
            f"wrong number of fields: {said}{more}; fields are divided by tabs and not quoted"
        )
    logger.warning("dropped %d of %d rows, the first: %s", len(odd), num_rows, said)
