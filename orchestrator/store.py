"""The run's folder: every file of a run is read and written through one `RunStore`.

Files are written whole or not at all. Rows are immutable parts, for object stores cannot append.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.credentials import refuse_in_uri
from supernet.errors import InvalidInput, StorageFailed

_PART = re.compile(
    r"(?P<kind>[a-z_]+)-(?P<label>[a-z0-9_]*?)(?P<writer>\d{4})-(?P<number>\d{6})\.jsonl\Z"
)


class RunStore:
    """A folder on a local or shared disk, or on an object store by its URI (`s3://…`).

    Args:
        root: a path or a URI that pyarrow's file systems know.
    """

    def __init__(self, root: str | Path) -> None:
        text = str(root)
        refuse_in_uri(text)
        remote = "://" in text
        self._files: Any = fs.FileSystem.from_uri(text)[0] if remote else fs.LocalFileSystem()
        self._root: str = fs.FileSystem.from_uri(text)[1] if remote else os.path.abspath(text)
        self.uri = text if remote else self._root

    @property
    def name(self) -> str:
        """The run's name: the last part of its folder."""
        return self._root.rstrip("/").rsplit("/", 1)[-1]

    def local_path(self, name: str = "") -> Path:
        """Where a file lies on this machine, for libraries that read and write paths.

        Raises:
            InvalidInput: if the run's folder is not on a disk.
        """
        if not isinstance(self._files, fs.LocalFileSystem):
            raise InvalidInput(
                f"this needs a run's folder on a local or shared disk, but got {self.uri}"
            )
        return Path(self._full(name))

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        return bool(self._files.get_file_info(self._full(name)).type != fs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; none where there is no folder.

        Raises:
            InvalidInput: if there is a file in its place.
        """
        selector = fs.FileSelector(self._full(folder), allow_not_found=True)
        try:
            found = self._files.get_file_info(selector)
        except NotADirectoryError:
            raise InvalidInput(
                f"{self._full(folder)} must be a folder, but is a file: name another with --out"
            ) from None
        return sorted(info.base_name for info in found if not info.base_name.startswith("."))

    def read_bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            InvalidInput: if it cannot be read.
        """
        try:
            with self._files.open_input_stream(self._full(name)) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise InvalidInput(f"cannot read {name} in the run {self.uri}: {error}") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole: under another name first where the storage can rename.

        Raises:
            StorageFailed: if the storage refuses; the file is then as it was before.
        """
        path = self._full(name)
        folder, _, base = path.rpartition("/")
        local = isinstance(self._files, fs.LocalFileSystem)
        part = f"{folder}/.{base}.{os.getpid()}.part" if local else path
        try:
            self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(part) as stream:
                stream.write(data)
            if local:
                os.replace(part, path)
        except OSError as error:
            if local:
                Path(part).unlink(missing_ok=True)
            raise StorageFailed(
                f"cannot write {name} ({len(data)} bytes) to {self.uri}: {error}; what was written "
                f"before is intact: make room or mend the access, then run the same command again"
            ) from error

    def read_json(self, name: str) -> Any:
        """A JSON file's value.

        Raises:
            InvalidInput: if it cannot be read or is no JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except ValueError as error:
            raise InvalidInput(f"{name} in the run {self.uri} is not valid JSON: {error}") from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON, whole."""
        text = json.dumps(value, indent=2, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that it holds; nothing where it is not there."""
        info = self._files.get_file_info(self._full(name))
        if info.type == fs.FileType.Directory:
            self._files.delete_dir(self._full(name))
        elif info.type == fs.FileType.File:
            self._files.delete_file(self._full(name))

    def row_writer(self, kind: str, label: str = "") -> "RowWriter":
        """A new writer of rows of one kind ("score", "train", …); its number is not yet in use.

        Writers of one kind that work at the same time have different labels.
        """
        used = [int(part["writer"]) for part in self._parts(kind) if part["label"] == label]
        return RowWriter(self, f"{kind}-{label}{max(used, default=0) + 1:04d}")

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of one kind, in the order in which they were written."""
        return [
            json.loads(line)
            for part in self._parts(kind)
            for line in self.read_bytes(f"rows/{part.string}").splitlines()
        ]

    def _parts(self, kind: str) -> Iterable[re.Match[str]]:
        matches = (_PART.match(name) for name in self.names("rows"))
        return [match for match in matches if match and match["kind"] == kind]

    def _full(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root


class RowWriter:
    """Writes rows of one kind as immutable parts `rows/<kind>-<writer>-<number>.jsonl`."""

    def __init__(self, store: RunStore, name: str) -> None:
        self._store = store
        self._prefix = f"rows/{name}"
        self._number = 0

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write one part; once this returns, its rows outlive a crash."""
        lines = [json.dumps(row, allow_nan=False) for row in rows]
        if lines:
            name = f"{self._prefix}-{self._number:06d}.jsonl"
            self._store.write_bytes(name, ("\n".join(lines) + "\n").encode())
            self._number += 1
