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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict, StorageFailed

LEASE = "driver.lease"
HEARTBEAT_S = 5.0
EXPIRES_S = 30.0
_TEXTS, _NUMBERS = ("holder", "host", "machine"), ("pid", "began", "at")
_LARGEST = 2**53
"""Beyond every time and process number; JSON has NaN, infinity and integers of any length too."""
SETTLE_S, SETTLE_REMOTE_S = 0.2, 1.5
"""Two drivers that start at once both find no lease; after this long, on a disk or an object store,
the last to write has it. A write that takes longer is found by the other one's next heartbeat."""

logger = logging.getLogger(__name__)


@contextmanager
def hold_lease(store: RunStore) -> Iterator[str]:
    """Hold the run for this process; gives the holder's id, for `is_held_by`.

    Raises:
        RunConflict: if another driver that lives holds it.
    """
    _refuse_if_held(store)
    mine = uuid.uuid4().hex
    _beat(store, mine)
    time.sleep(SETTLE_S if store.on_disk else SETTLE_REMOTE_S)
    if not is_held_by(store, mine):
        _refuse_if_held(store)
    stop = threading.Event()
    thread = threading.Thread(target=_keep_beating, args=(store, mine, stop), daemon=True)
    thread.start()
    try:
        yield mine
    finally:
        stop.set()
        thread.join()
        if is_held_by(store, mine):
            store.delete(LEASE)


def is_held_by(store: RunStore, holder: str) -> bool:
    """Whether the run is still that holder's; not where another took it over or there is no lease.

    Raises:
        StorageFailed: if an object store cannot be reached.
    """
    return holder_of(store) == holder


def holder_of(store: RunStore) -> str | None:
    """The id of the run's holder; None where there is no lease.

    Raises:
        StorageFailed: if an object store cannot be reached.
    """
    lease = _read(store)
    return None if lease is None else str(lease["holder"])


def this_machine() -> str:
    """Where process numbers mean the same: containers of one host count their own."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"


def _read(store: RunStore) -> Mapping[str, Any] | None:
    """The lease; None where there is none, or what is there is damaged."""
    if not store.exists(LEASE):
        return None
    try:
        lease = store.read_json(LEASE)
    except InvalidInput:
        return None
    return lease if _is_whole(lease) else None


def _is_whole(lease: Any) -> bool:
    """Whether everything that is done with a lease can be done with this."""
    return (
        isinstance(lease, dict)
        and all(isinstance(lease.get(name), str) for name in _TEXTS)
        and all(type(lease.get(name)) in (int, float) for name in _NUMBERS)
        and all(abs(lease[name]) < _LARGEST for name in _NUMBERS)
        and isinstance(lease["pid"], int)
        and lease["pid"] > 0
    )


def _refuse_if_held(store: RunStore) -> None:
    lease = _read(store)
    if lease is None:
        return
    age = time.time() - lease["at"]
    here = lease["machine"] == this_machine()
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
            if lease is not None and lease["holder"] != mine:
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
