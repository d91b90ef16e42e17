"""Strict UTF-8 lines of a file, read in chunks; a bad byte is reported with its offset."""

import codecs
import sys
from collections.abc import Iterator
from pathlib import Path

from supernet.errors import InvalidInput

CHUNK_BYTES = 1 << 20


def lines(path: Path, *, max_chars: int = sys.maxsize) -> Iterator[str]:
    """The file's lines with their line ends, "\\r\\n" read as "\\n".

    A line longer than `max_chars` comes in pieces, cut between words, so that none fills memory.

    Raises:
        InvalidInput: if the file is missing, cannot be read, or is not UTF-8.
    """
    tail = ""
    for text in _decoded_chunks(path):
        *whole, tail = (tail + text).split("\n")
        for line in whole:
            yield from _pieces(line.removesuffix("\r") + "\n", max_chars)
        *pieces, tail = _pieces(tail, max_chars)
        yield from pieces
    if tail:
        yield tail


def _pieces(line: str, max_chars: int) -> Iterator[str]:
    """The line in pieces; the last one may be empty."""
    while len(line) > max_chars:
        piece, line = _cut_at_space(line, max_chars)
        yield piece
    yield line


def _cut_at_space(line: str, max_chars: int) -> tuple[str, str]:
    border = line.rfind(" ", 1, max_chars) + 1 or max_chars
    return line[:border], line[border:]


def _decoded_chunks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    offset = 0
    for chunk in _chunks(path):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset - pending + error.start, error) from None
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(chunk)


def _chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes; an empty chunk marks the end."""
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise unreadable(path, error) from None
    yield b""


def _not_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> InvalidInput:
    return InvalidInput(
        f"text must be UTF-8, but {path} has byte 0x{error.object[error.start]:02x} at byte "
        f"offset {offset} ({error.reason}); convert it, for example with `iconv -t utf-8`"
    )


def unreadable(path: Path, error: OSError) -> InvalidInput:
    """The error for a file or folder that the operating system does not let us read."""
    if isinstance(error, FileNotFoundError):
        return missing(path)
    return InvalidInput(
        f"the data must be readable, but {path} is not ({error.strerror or error}); "
        "check its permissions"
    )


def missing(path: Path | str) -> InvalidInput:
    """The error for a file or folder that is not there."""
    return InvalidInput(f"missing file: {str(path)!r} does not exist; check data.source")


def is_unicode(text: str) -> bool:
    """Whether the text can be written as UTF-8: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
