"""The run's folder: every file of a run is read and written through one `RunStore`.

Files are written whole or not at all. Rows are immutable parts, for object stores cannot append.
Where the storage cannot be reached or refuses, every call raises `StorageFailed`.
"""

import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from orchestrator.filesystems import open_place
from supernet.errors import InvalidInput, MagicNasError, StorageFailed

READERS = 16
"""Files that are read from an object store at once, for each costs a round trip."""
CHUNK = 2**23
"""Bytes of a large file that are held in memory at a time."""
_PART = re.compile(
    r"(?P<kind>[a-z_]+)-(?P<label>[a-z0-9_]*?)(?P<writer>\d{4})-(?P<number>\d{6})\.jsonl\Z"
)


class RunStore:
    """A folder on a local or shared disk, or on an object store by its URI (`s3://…`, `gs://…`).

    Args:
        root: a path or a URI; see `orchestrator.filesystems`.

    Raises:
        InvalidInput: if it names no folder that could be used.
    """

    def __init__(self, root: str | Path) -> None:
        place = open_place(str(root))
        self._files, self._root, self.uri = place.files, place.root, place.uri

    @property
    def name(self) -> str:
        """The run's name: the last part of its folder."""
        return self._root.rpartition("/")[2]

    @property
    def on_disk(self) -> bool:
        """Whether it is a folder of paths, rather than on an object store."""
        return isinstance(self._files, fs.LocalFileSystem)

    def uri_of(self, name: str) -> str:
        """What a person calls a file of the run, without the options of the storage."""
        return f"{self.uri if self.on_disk else self.uri.partition('?')[0]}/{name}"

    @property
    def files(self) -> Any:
        """The file system of pyarrow's that the folder lies on."""
        return self._files

    def path(self, name: str = "") -> str:
        """Where a file lies on that file system."""
        return f"{self._root}/{name}" if name else self._root

    def local_path(self, name: str = "") -> Path:
        """Where a file lies on this machine, for libraries that read and write paths.

        Raises:
            InvalidInput: if the run's folder is not on a disk.
        """
        if not self.on_disk:
            raise InvalidInput(
                f"this needs a run's folder on a local or shared disk, but got {self.uri}"
            )
        return Path(self.path(name))

    def check_writable(self) -> None:
        """Write a small file, read it back and remove it; no folder is left that was not there.

        Raises:
            InvalidInput: if any of it is refused.
        """
        name, data = f".probe-{socket.gethostname()}-{secrets.token_hex(8)}", b"magic-nas"
        try:
            self.names("")
            with self._no_new_folders():
                self.write_bytes(name, data)
                try:
                    if self.read_bytes(name) != data:
                        raise StorageFailed("what was written is not what is read")
                finally:
                    self.delete(name)
        except InvalidInput:
            raise
        except (MagicNasError, OSError) as error:
            raise InvalidInput(
                f"a run's folder must be on storage that every node can write, read and delete "
                f"on, but on {socket.gethostname()} {self.uri} is not: "
                f"{error.__cause__ or error}; name another folder, or mend its address, bucket or "
                f"permissions, or the node's credentials"
            ) from None

    def exists(self, name: str = "") -> bool:
        """Whether the file or folder is there."""
        with self._reaching(name):
            return bool(self._files.get_file_info(self.path(name)).type != fs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder, sorted; none where there is no folder.

        Raises:
            InvalidInput: if there is a file in its place.
        """
        return [name for name in self._all_names(folder) if not name.startswith(".")]

    def _all_names(self, folder: str) -> list[str]:
        """Also of hidden files, such as another process's probe."""
        selector = fs.FileSelector(self.path(folder), allow_not_found=True)
        try:
            with self._reaching(folder):
                return sorted(info.base_name for info in self._files.get_file_info(selector))
        except NotADirectoryError:
            raise InvalidInput(
                f"{self.path(folder)} must be a folder, but is a file: name another with --out"
            ) from None

    def read_bytes(self, name: str) -> bytes:
        """A file's content.

        Raises:
            InvalidInput: if there is no such file, or its disk cannot read it.
        """
        try:
            with self._reaching(name), self._files.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except OSError as error:
            raise InvalidInput(f"cannot read {name} in the run {self.uri}: {error}") from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file whole: under another name first on a disk; object stores do as much.

        Raises:
            StorageFailed: if the storage refuses; the file is then as it was before.
        """
        path = self.path(name)
        folder, _, base = path.rpartition("/")
        part = f"{folder}/.{base}.{os.getpid()}.part" if self.on_disk else path
        try:
            if self.on_disk:
                self._files.create_dir(folder, recursive=True)
            with self._files.open_output_stream(part) as stream:
                stream.write(data)
            if self.on_disk:
                os.replace(part, path)
        except OSError as error:
            if self.on_disk:
                with suppress(OSError):
                    Path(part).unlink()
            raise StorageFailed(
                f"cannot write {name} ({len(data)} bytes) to {self.uri}: {error}; what was written "
                f"before is intact: make room or mend the access, then run the same command again"
            ) from error

    def upload(self, source: Path, name: str) -> None:
        """Write a file of this machine's disk, of any size.

        Raises:
            StorageFailed: if the storage refuses.
        """
        try:
            with source.open("rb") as file, self._files.open_output_stream(self.path(name)) as to:
                shutil.copyfileobj(file, to, CHUNK)
        except OSError as error:
            raise StorageFailed(
                f"cannot write {name} to {self.uri}: {error}; make room or mend the access, then "
                f"run the same command again"
            ) from error

    def download(self, name: str, target: Path) -> None:
        """Read a file, of any size, to this machine's disk.

        Raises:
            InvalidInput: if there is no such file.
            StorageFailed: if the storage cannot be reached.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file, self._reaching(name):
            try:
                with self._files.open_input_stream(self.path(name)) as stream:
                    shutil.copyfileobj(stream, file, CHUNK)
            except FileNotFoundError as error:
                raise InvalidInput(f"cannot read {name} in the run {self.uri}: {error}") from error

    def read_json(self, name: str) -> Any:
        """A JSON file's value.

        Raises:
            InvalidInput: if it cannot be read or is no JSON.
        """
        try:
            return json.loads(self.read_bytes(name))
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{name} in the run {self.uri} is not valid JSON: {error}") from None

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as JSON, whole."""
        text = json.dumps(value, indent=2, allow_nan=False)
        self.write_bytes(name, (text + "\n").encode())

    def delete(self, name: str) -> None:
        """Remove a file or a folder with all that it holds; nothing where it is not there."""
        with self._reaching(name):
            info = self._files.get_file_info(self.path(name))
            if info.type == fs.FileType.Directory:
                self._files.delete_dir(self.path(name))
            elif info.type == fs.FileType.File:
                self._files.delete_file(self.path(name))

    def delete_if_empty(self) -> None:
        """Remove the run's folder unless anything lies in it, be it of another process."""
        if self.on_disk:
            with suppress(OSError):
                self.local_path().rmdir()
        elif not self._all_names(""):
            self.delete("")

    def row_writer(self, kind: str, label: str = "") -> "RowWriter":
        """A new writer of rows of one kind ("score", "train", …); its number is not yet in use.

        Writers of one kind that work at the same time have different labels.

        Raises:
            ValueError: if rows of such a kind and label would not be found again.
        """
        if not _PART.match(f"{kind}-{label}0001-000000.jsonl"):
            raise ValueError(
                f"kind and label of rows are lower-case words, but got {kind!r}, {label!r}"
            )
        used = [int(part["writer"]) for part in self._parts(kind) if part["label"] == label]
        return RowWriter(self, f"{kind}-{label}{max(used, default=0) + 1:04d}")

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of one kind, in the order in which they were written.

        Raises:
            InvalidInput: if a part of them is damaged.
        """
        names = [f"rows/{part.string}" for part in self._parts(kind)]
        with ThreadPoolExecutor(1 if self.on_disk else READERS) as pool:
            texts = list(pool.map(self.read_bytes, names))
        parts = (self._parse_rows(*part) for part in zip(names, texts, strict=True))
        return [row for part in parts for row in part]

    def drop_rows(self, kind: str, label: str = "", *, after: int) -> None:
        """Remove the parts with rows of later steps than this one, of one kind and label.

        Raises:
            InvalidInput: if a part is damaged.
        """
        for part in self._parts(kind):
            name = f"rows/{part.string}"
            if part["label"] == label and any(
                row["step"] > after for row in self._parse_rows(name, self.read_bytes(name))
            ):
                self.delete(name)

    def _parse_rows(self, name: str, text: bytes) -> list[dict[str, Any]]:
        try:
            rows = [json.loads(line) for line in text.splitlines()]
        except (ValueError, RecursionError) as error:
            raise self._damaged(name, str(error)) from None
        if not all(isinstance(row, dict) for row in rows):
            raise self._damaged(name, "a line holds no keys and values")
        return rows

    def _damaged(self, name: str, why: str) -> InvalidInput:
        return InvalidInput(
            f"{name} in the run {self.uri} must hold rows, a JSON object a line, but is damaged "
            f"({why}): put a whole copy of it in its place, or move it out of the run's folder to "
            f"go on without its rows"
        )

    def _parts(self, kind: str) -> Iterable[re.Match[str]]:
        matches = (_PART.match(name) for name in self.names("rows"))
        return [match for match in matches if match and match["kind"] == kind]

    @contextmanager
    def _reaching(self, name: str) -> Iterator[None]:
        """Turns what an object store raises, unless the file is not there, to `StorageFailed`."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.on_disk:
                raise
            raise StorageFailed(
                f"cannot reach {name or 'the folder'} in the run {self.uri}: {error}; what was "
                f"written before is intact: mend the access, then run the same command again"
            ) from error

    @contextmanager
    def _no_new_folders(self) -> Iterator[None]:
        """Removes folders on a disk that came in the meantime and are empty."""
        folder = Path(self._root)
        made = [path for path in (folder, *folder.parents) if self.on_disk and not path.exists()]
        try:
            yield
        finally:
            with suppress(OSError):
                for path in made:
                    path.rmdir()


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
