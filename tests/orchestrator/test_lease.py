"""One driver at a time works on a run; a crash leaves no lock behind."""

import os
import socket
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.lease import EXPIRES_S, LEASE, hold_lease
from orchestrator.store import RunStore
from supernet.errors import RunConflict


def lease_of(pid: int, *, began: float, host: str, age_s: float) -> dict[str, object]:
    return {"pid": pid, "began": began, "host": host, "at": time.time() - age_s}


def test_a_second_driver_is_refused_while_the_first_one_lives(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with hold_lease(store), pytest.raises(RunConflict, match=str(os.getpid())), hold_lease(store):
        pass


def test_the_lease_is_gone_when_the_driver_ends(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with hold_lease(store):
        assert store.exists(LEASE)
    assert not store.exists(LEASE)


def test_a_lease_of_a_dead_process_on_this_machine_is_taken_over(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    host = socket.gethostname()
    store.write_json(LEASE, lease_of(os.getpid(), began=1.0, host=host, age_s=0))
    with hold_lease(store):
        began = psutil.Process().create_time()
        assert store.read_json(LEASE)["began"] == began


@pytest.mark.parametrize(("age_s", "held"), [(1.0, True), (EXPIRES_S + 1, False)])
def test_a_lease_of_another_machine_ends_when_its_heartbeat_is_old(
    tmp_path: Path, age_s: float, held: bool
) -> None:
    store = RunStore(tmp_path)
    store.write_json(LEASE, lease_of(1, began=1.0, host="elsewhere", age_s=age_s))
    if held:
        with pytest.raises(RunConflict, match="elsewhere"), hold_lease(store):
            pass
    else:
        with hold_lease(store):
            assert store.read_json(LEASE)["host"] == socket.gethostname()
