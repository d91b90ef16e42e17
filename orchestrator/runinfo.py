"""What a run says of itself: versions, commit, machine, and time and memory per stage.

All of it lies in `run.json`; a stage that has an entry there is finished.
"""

import importlib.metadata
import os
import platform
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed

RUN_INFO = "run.json"
LIBRARIES = ("magic-nas", "ray", "deepspeed", "torch", "transformers", "datasets", "tokenizers")
_MAPPINGS = ("stages", "interrupted_s")
_GIB = 2**30


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide a result."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }


def read_info(store: RunStore) -> dict[str, Any]:
    """What `run.json` says; empty before the first stage.

    Raises:
        InvalidInput: if it is damaged.
    """
    if not store.exists(RUN_INFO):
        return {}
    info = store.read_json(RUN_INFO)
    if isinstance(info, dict) and all(isinstance(info.get(key, {}), dict) for key in _MAPPINGS):
        return info
    raise InvalidInput(
        f"{RUN_INFO} in the run {store.uri} must hold keys and values, as "
        f"{' and '.join(_MAPPINGS)} in it must, but does not: put a whole copy of it in its place, "
        f"or remove it and run the same command again, which goes through the stages anew"
    )


def update_info(store: RunStore, **values: Any) -> None:
    """Set top-level entries of `run.json`."""
    store.write_json(RUN_INFO, {**read_info(store), **values})


def describe(store: RunStore, *, seed: int) -> None:
    """Write what is known before the first stage."""
    machine = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / _GIB, 1),
    }
    update_info(
        store,
        name=store.name,
        seed=seed,
        versions=library_versions(),
        commit=_commit(),
        machine=machine,
    )


def is_finished(store: RunStore, stage: str) -> bool:
    """Whether a stage came to its end."""
    return stage in read_info(store).get("stages", {})


@contextmanager
def stage_record(store: RunStore, stage: str) -> Iterator[None]:
    """Record a stage's wall time and peak memory once it ends well.

    A stage that was interrupted adds its time to what the next attempt takes.
    """
    spent = read_info(store).get("interrupted_s", {}).get(stage, 0.0)
    began = time.monotonic()
    try:
        with PeakMemory() as memory:
            yield
    except BaseException:
        if store.exists():
            earlier = read_info(store).get("interrupted_s", {})
            spent += time.monotonic() - began
            with suppress(StorageFailed):  # on a full disk, what failed first is the news
                update_info(store, interrupted_s={**earlier, stage: spent})
        raise
    record = {
        "wall_s": round(spent + time.monotonic() - began, 1),
        "peak_memory_gib": round(memory.peak_gib, 2),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    update_info(store, stages={**read_info(store).get("stages", {}), stage: record})


class PeakMemory:
    """Watches the memory of this process and all that it started, shared pages counted once."""

    def __init__(self, *, every_s: float = 2.0) -> None:
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)
        self.peak_gib = 0.0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_gib = max(self.peak_gib, _tree_bytes() / _GIB)
            if self._stop.wait(self._every_s):
                return


def _tree_bytes() -> int:
    own = psutil.Process()
    return sum(_proportional_bytes(process) for process in [own, *own.children(recursive=True)])


def _proportional_bytes(process: psutil.Process) -> int:
    try:
        memory = process.memory_full_info()
        return int(getattr(memory, "pss", memory.rss))
    except psutil.Error:
        return 0


def _commit() -> str | None:
    """The commit of the working copy that this file lies in, if it is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
