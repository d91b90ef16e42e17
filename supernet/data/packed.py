"""Token sequences of one length, packed from documents and memory-mapped from Arrow files.

Packing is RoBERTa's FULL-SENTENCES: [CLS] text [SEP], with [SEP] between documents as well.

B: sequences, T: tokens of a sequence.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from supernet.errors import InvalidInput

COLUMN = "input_ids"
ROWS_PER_BATCH = 4096
_FILE_NAME = "data.arrow"
_MAX_UINT16 = 2**16


def pack(
    documents: Iterable[list[int]], *, length: int, cls_id: int, sep_id: int, pad_id: int
) -> Iterator[list[int]]:
    """Sequences of exactly `length` tokens.

    The last one is padded if at least half of it is filled, else dropped.
    """
    room = length - 2
    tokens: list[int] = []
    for document in documents:
        tokens += document
        tokens.append(sep_id)
        start = 0
        while len(tokens) - start > room:
            text = tokens[start : start + room]
            start += room + (tokens[start + room] == sep_id)
            yield [cls_id, *text, sep_id]
        del tokens[:start]
    last = [cls_id, *tokens]
    if len(tokens) > 1 and 2 * len(last) >= length:
        yield last + [pad_id] * (length - len(last))


def write_packed(
    folder: Path, sequences: Iterable[list[int]], *, length: int, vocab_size: int
) -> int:
    """Write the sequences as an Arrow stream and return how many there are."""
    item: Any = pa.uint16() if vocab_size <= _MAX_UINT16 else pa.int32()
    schema = pa.schema([(COLUMN, pa.list_(item, length))])
    folder.mkdir()
    count = 0
    with (
        pa.OSFile(str(folder / _FILE_NAME), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for rows in _batched(sequences, ROWS_PER_BATCH):
            flat = pa.array(np.array(rows).reshape(-1), item)
            column = pa.FixedSizeListArray.from_arrays(flat, length)
            writer.write_batch(pa.record_batch([column], schema=schema))
            count += len(rows)
    return count


def _batched(sequences: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    rows: list[list[int]] = []
    for sequence in sequences:
        rows.append(sequence)
        if len(rows) == size:
            yield rows
            rows = []
    if rows:
        yield rows


class PackedDataset:
    """One split of prepared data; rows are read from a memory-mapped file as they are asked for.

    Raises:
        InvalidInput: if the folder holds no such split.
    """

    def __init__(self, folder: Path, split: str) -> None:
        table = _map(folder / split / _FILE_NAME)
        self._blocks = [_view(chunk) for chunk in table.column(COLUMN).chunks]
        self._length = table.num_rows

    def __len__(self) -> int:
        return int(self._length)

    def rows(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """The sequences at the indices, rows_BT."""
        width = self._blocks[0].shape[1] if self._blocks else 0
        rows_BT = np.empty((len(indices), width), dtype=np.int64)
        for place, index in enumerate(indices.tolist()):
            if not 0 <= index < self._length:
                raise IndexError(f"0 <= index < {self._length} must hold, but got {index}")
            rows_BT[place] = self._blocks[index // ROWS_PER_BATCH][index % ROWS_PER_BATCH]
        return rows_BT

    def blocks(self) -> Iterator[NDArray[np.int64]]:
        """All sequences in order, some thousands at a time."""
        for block in self._blocks:
            yield block.astype(np.int64)


def _map(path: Path) -> Any:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise InvalidInput(
            f"a split of prepared data is an Arrow file, but {path} cannot be read ({error}); "
            "prepare it again in another run, or put the file back"
        ) from None


def _view(chunk: Any) -> NDArray[Any]:
    """The chunk's memory as an array (sequences, tokens); nothing is copied."""
    values: NDArray[Any] = chunk.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(len(chunk), -1)
