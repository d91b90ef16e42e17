"""Folders that libraries read by path (`data/`, `export/`), where a run lies on an object store.

Such a folder is written on a disk and then uploaded, its manifest last; each node downloads it
once into a cache that its processes share, named by the manifest's own sha256.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed
from supernet.manifest import MANIFEST, check_manifest, read_manifest

CACHE = "MAGIC_NAS_CACHE"
"""The environment variable that names the cache; without it `~/.cache/magic-nas`."""


def folder_here(store: RunStore, name: str) -> Path:
    """The run's folder of that name as a path on this machine, every file as its manifest says.

    Raises:
        InvalidInput: if a file is missing or differs from the manifest.
        StorageFailed: if it cannot be downloaded.
    """
    if store.on_disk:
        folder = store.local_path(name)
        check_manifest(folder)
        return folder
    manifest = store.read_bytes(f"{name}/{MANIFEST}")
    cached = _cache() / hashlib.sha256(manifest).hexdigest()
    with _locked(cached):
        if not _is_whole(cached):
            _download(store, name, manifest, cached)
    return cached


@contextmanager
def folder_to_fill(store: RunStore, name: str, *, cached: bool = True) -> Iterator[Path]:
    """A path to make the run's folder of that name at, whole and with a manifest.

    On an object store, what was made there is uploaded and, if `cached`, kept in this node's
    cache. Processes of a node may fill folders of different names at once.

    Raises:
        StorageFailed: if it cannot be uploaded; there is no folder of that name then.
    """
    if store.on_disk:
        yield store.local_path(name)
        return
    work = _cache() / f"work-{hashlib.sha256(f'{store.uri} {name}'.encode()).hexdigest()}"
    shutil.rmtree(work, ignore_errors=True)
    try:
        folder = work / name
        folder.parent.mkdir(parents=True)
        yield folder
        store.delete(name)
        manifest = (folder / MANIFEST).read_bytes()
        for file in read_manifest(manifest, of=str(folder)):
            store.upload(folder / file, f"{name}/{file}")
        store.write_bytes(f"{name}/{MANIFEST}", manifest)
        copy = _cache() / hashlib.sha256(manifest).hexdigest()
        with _locked(copy):
            if cached and not copy.exists():
                os.replace(folder, copy)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _cache() -> Path:
    named = os.environ.get(CACHE)
    cache = Path(named) if named else Path.home() / ".cache" / "magic-nas"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"a run on an object store needs a folder for its data on every node, but {cache} "
            f"cannot be made ({error.strerror}): set {CACHE} to one that can"
        ) from None
    return cache


@contextmanager
def _locked(cached: Path) -> Iterator[None]:
    """Only one process of this node at a time; a lock goes with the process that holds it."""
    with cached.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(cached: Path) -> bool:
    try:
        check_manifest(cached)
    except InvalidInput:
        return False
    return True


def _download(store: RunStore, name: str, manifest: bytes, cached: Path) -> None:
    """Into a folder beside it first, so that no half copy is taken for a whole one."""
    partial = cached.with_suffix(".partial")
    for old in (partial, cached):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    try:
        for file in read_manifest(manifest, of=store.uri_of(name)):
            store.download(f"{name}/{file}", partial / file)
        (partial / MANIFEST).write_bytes(manifest)
        check_manifest(partial)
        os.replace(partial, cached)
    except OSError as error:
        raise StorageFailed(
            f"{store.uri_of(name)} must be copied to {cached} on this node, but its disk refused "
            f"({error}): make room, or set {CACHE} to a folder with more"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
