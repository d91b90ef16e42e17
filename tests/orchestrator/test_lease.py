"""One driver at a time works on a run; a crash leaves no lock behind."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.lease import EXPIRES_S, LEASE, hold_lease, this_machine
from orchestrator.store import RunStore
from supernet.errors import RunConflict


def lease_of(pid: int, *, began: float, machine: str, age_s: float) -> dict[str, object]:
    at = time.time() - age_s
    host = machine.split()[0]
    return {"holder": "x", "pid": pid, "began": began, "machine": machine, "host": host, "at": at}


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
    store.write_json(LEASE, lease_of(os.getpid(), began=1.0, machine=this_machine(), age_s=0))
    with hold_lease(store):
        began = psutil.Process().create_time()
        assert store.read_json(LEASE)["began"] == began


@pytest.mark.parametrize(
    "machine", ["elsewhere boot pid:[1]", this_machine().rpartition(" ")[0] + " pid:[1]"]
)
@pytest.mark.parametrize(("age_s", "held"), [(1.0, True), (EXPIRES_S + 1, False)])
def test_a_lease_of_another_machine_or_container_ends_when_its_heartbeat_is_old(
    tmp_path: Path, machine: str, age_s: float, held: bool
) -> None:
    store = RunStore(tmp_path)
    store.write_json(LEASE, lease_of(1, began=1.0, machine=machine, age_s=age_s))
    if held:
        with pytest.raises(RunConflict, match=f"on {machine.split()[0]} holds"), hold_lease(store):
            pass
    else:
        with hold_lease(store):
            assert store.read_json(LEASE)["host"] == socket.gethostname()


def test_of_drivers_that_start_at_once_one_goes_on(tmp_path: Path) -> None:
    code = """
        import sys, time
        from orchestrator.lease import hold_lease
        from orchestrator.store import RunStore
        from supernet.errors import RunConflict
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            with hold_lease(RunStore(sys.argv[1])):
                time.sleep(3)
                print("held")
        except RunConflict:
            print("refused")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [driver.stdout.readline() for driver in drivers] == ["ready\n"] * 3
    for driver in drivers:
        driver.stdin.write("\n")
        driver.stdin.flush()
    ends = sorted(driver.communicate(timeout=60)[0].strip() for driver in drivers)
    assert ends == ["held", "refused", "refused"]


def test_a_driver_whose_lease_was_taken_over_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.lease.HEARTBEAT_S", 0.1)
    store = RunStore(tmp_path)
    other = lease_of(1, began=1.0, machine="elsewhere boot pid:[1]", age_s=0)
    with pytest.raises(KeyboardInterrupt), hold_lease(store):
        store.write_json(LEASE, other)
        time.sleep(10)
    assert store.read_json(LEASE) == other
