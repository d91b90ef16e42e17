"""The manifest of a folder: the sha256 of every file in it, so that reading finds damage.

Written last. A folder without one was never finished.
"""

import hashlib
import json
from pathlib import Path

from supernet.errors import InvalidInput

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files under the folder."""
    digests = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=2) + "\n")


def rewrite_file(folder: Path, name: str, text: str) -> None:
    """Write a file of a folder anew, and its line in the manifest; other lines stay as they are."""
    (folder / name).write_text(text, encoding="utf-8")
    digests = read_manifest((folder / MANIFEST).read_bytes(), of=str(folder))
    digests[name] = _sha256(folder / name)
    (folder / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=2) + "\n")


def read_manifest(data: bytes, *, of: str) -> dict[str, str]:
    """Relative path to sha256, of all files of the folder that a message calls `of`.

    Raises:
        InvalidInput: if these bytes are no manifest, or name a file outside of the folder.
    """
    try:
        digests: dict[str, str] = json.loads(data)["sha256"]
        if any(".." in Path(name).parts or Path(name).is_absolute() for name in digests):
            raise ValueError("a file outside of the folder")
        return digests
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"{MANIFEST} of {of} must give the sha256 of its files, but is damaged "
            f"({type(error).__name__}: {error}): put it back, or make the folder again in another "
            f"run"
        ) from None


def check_manifest(folder: Path) -> None:
    """Compare every file with the folder's manifest; files that it does not name do not count.

    Raises:
        InvalidInput: naming the first file that is missing or differs.
    """
    try:
        digests = read_manifest((folder / MANIFEST).read_bytes(), of=str(folder))
        for name, expected in digests.items():
            found = _sha256(folder / name)
            if found != expected:
                raise InvalidInput(
                    f"{folder / name} must have the sha256 of its {MANIFEST}, {expected}, but has "
                    f"{found}: it is damaged; put it back, or make it again in another run"
                )
    except OSError as error:
        raise InvalidInput(
            f"{folder} must hold all files of its {MANIFEST}, but {error.filename} cannot be read "
            f"({error.strerror}): put it back, or make the folder again in another run"
        ) from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
