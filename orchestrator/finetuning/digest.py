"""A model's folder told from others by its content; no torch in here."""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from supernet.manifest import MANIFEST

BESIDE = (".*", "*.onnx", "*.onnx.data", "checkpoint-*")
"""What others leave in a model's folder, which is not part of it."""
_ABOUT = (MANIFEST, "README.md")


def digest_of(folder: Path) -> str:
    """Of what a model's folder holds, but for what is written about it or made of it."""
    found = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = file.relative_to(folder).parts
        if any(fnmatchcase(part, name) for part in parts for name in (*_ABOUT, *BESIDE)):
            continue
        found.update(file.relative_to(folder).as_posix().encode())
        with file.open("rb") as content:
            found.update(hashlib.file_digest(content, "sha256").digest())
    return found.hexdigest()[:16]
