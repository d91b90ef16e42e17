"""The lock of a run: a lease with a heartbeat, so that a crash leaves no lock behind.

One driver at a time works on a run's folder. A lease whose heartbeat is old, or whose process on
this machine is gone, is taken over.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict, StorageFailed

LEASE = "driver.lease"
HEARTBEAT_S = 5.0
EXPIRES_S = 30.0


@contextmanager
def hold_lease(store: RunStore) -> Iterator[None]:
    """Hold the run for this process.

    Raises:
        RunConflict: if another driver that lives holds it.
    """
    _refuse_if_held(store)
    stop = threading.Event()
    _beat(store)
    thread = threading.Thread(target=_keep_beating, args=(store, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        store.delete(LEASE)


def _refuse_if_held(store: RunStore) -> None:
    if not store.exists(LEASE):
        return
    try:
        lease: dict[str, Any] = store.read_json(LEASE)
    except InvalidInput:
        return
    age = time.time() - lease["at"]
    here = lease["host"] == socket.gethostname()
    if age > EXPIRES_S or (here and not _is_alive(lease["pid"], lease["began"])):
        return
    raise RunConflict(
        f"one driver at a time works on a run, but process {lease['pid']} on {lease['host']} holds "
        f"{store.uri} (seen {age:.0f} s ago): wait for it or stop it; if that machine is gone, its "
        f"hold ends {EXPIRES_S:.0f} s after it was last seen"
    )


def _is_alive(pid: int, began: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - began) < 1.0
    except psutil.NoSuchProcess:
        return False


def _beat(store: RunStore) -> None:
    store.write_json(
        LEASE,
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "began": psutil.Process().create_time(),
            "at": time.time(),
        },
    )


def _keep_beating(store: RunStore, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            _beat(store)
        except StorageFailed:
            continue
