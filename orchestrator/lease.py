"""The lock of a run: a lease with a heartbeat, so that a crash leaves no lock behind.

One driver at a time works on a run's folder. A lease whose heartbeat is old, or whose process on
this machine is gone, is taken over; a driver that was cut off so long that another took its lease
stops when it is back.
"""

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict, StorageFailed

LEASE = "driver.lease"
HEARTBEAT_S = 5.0
EXPIRES_S = 30.0
SETTLE_S, SETTLE_REMOTE_S = 0.2, 1.5
"""Two drivers that start at once both find no lease; after this long, on a disk or an object store,
the last to write has it. A write that takes longer is found by the other one's next heartbeat."""

logger = logging.getLogger(__name__)


@contextmanager
def hold_lease(store: RunStore) -> Iterator[None]:
    """Hold the run for this process.

    Raises:
        RunConflict: if another driver that lives holds it.
    """
    _refuse_if_held(store)
    mine = uuid.uuid4().hex
    _beat(store, mine)
    time.sleep(SETTLE_S if store.on_disk else SETTLE_REMOTE_S)
    if not _is_held_by(store, mine):
        _refuse_if_held(store)
    stop = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(store, mine, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if _is_held_by(store, mine):
            store.delete(LEASE)


def this_machine() -> str:
    """Where process numbers mean the same: containers of one host count their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _read(store: RunStore) -> dict[str, Any] | None:
    """The lease; None where there is none, or what is there is damaged."""
    if not store.exists(LEASE):
        return None
    try:
        lease: dict[str, Any] = store.read_json(LEASE)
    except InvalidInput:
        return None
    return lease


def _is_held_by(store: RunStore, holder: str) -> bool:
    lease = _read(store)
    return lease is not None and lease.get("holder") == holder


def _refuse_if_held(store: RunStore) -> None:
    lease = _read(store)
    if lease is None:
        return
    age = time.time() - lease["at"]
    here = lease.get("machine") == this_machine()
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


def _beat(store: RunStore, holder: str) -> None:
    store.write_json(
        LEASE,
        {
            "holder": holder,
            "host": socket.gethostname(),
            "machine": this_machine(),
            "pid": os.getpid(),
            "began": psutil.Process().create_time(),
            "at": time.time(),
        },
    )


def _keep_beating(store: RunStore, mine: str, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_S):
        try:
            lease = _read(store)
            if lease is not None and lease.get("holder") != mine:
                logger.error(
                    "process %d on %s has taken over this run, for this one was not heard of for "
                    "%.0f s: stopping here",
                    *(lease["pid"], lease["host"], EXPIRES_S),
                )
                os.kill(os.getpid(), signal.SIGINT)
                return
            _beat(store, mine)
        except (StorageFailed, OSError):
            continue
