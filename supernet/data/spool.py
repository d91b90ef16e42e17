"""Documents on disk between reading and packing: an Arrow stream of (key hash, text).

A corpus may be larger than memory; all passes but the first read from here.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

_SCHEMA = pa.schema([("hash", pa.int64()), ("text", pa.large_string())])
_FLUSH_CHARS = 4_000_000


class SpoolWriter:
    """Appends documents to a spool; a context manager."""

    def __init__(self, path: Path) -> None:
        self._sink: Any = pa.OSFile(str(path), "wb")
        self._writer: Any = pa.ipc.new_stream(self._sink, _SCHEMA)
        self._hashes: list[int] = []
        self._texts: list[str] = []
        self._chars = 0

    def add(self, hashed: int, text: str) -> None:
        self._hashes.append(hashed)
        self._texts.append(text)
        self._chars += len(text) + 16
        if self._chars > _FLUSH_CHARS:
            self._flush()

    def _flush(self) -> None:
        if self._texts:
            columns = [pa.array(self._hashes, pa.int64()), pa.array(self._texts, pa.large_string())]
            self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._hashes, self._texts, self._chars = [], [], 0

    def __enter__(self) -> "SpoolWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._flush()
            self._writer.close()
        self._sink.close()


def read_spool(path: Path) -> Iterator[tuple[int, str]]:
    """The spool's documents in the order in which they were added."""
    with pa.memory_map(str(path)) as source:
        for batch in pa.ipc.open_stream(source):
            yield from zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True)
