"""One driver at a time works on a run; a crash leaves no lock behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.lease import EXPIRES_S, LEASE, hold_lease, holder_of, is_held_by, this_machine
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ray Train leaves one of its own
    store = RunStore(tmp_path)
    other = lease_of(1, began=1.0, machine="elsewhere boot pid:[1]", age_s=0)
    with pytest.raises(KeyboardInterrupt), hold_lease(store):
        store.write_json(LEASE, other)
        time.sleep(10)
    assert store.read_json(LEASE) == other


def damaged_leases() -> list[str]:
    """Texts in a lease's place that are none; the last ones lack or spoil a single field."""
    whole = lease_of(1, began=1.0, machine="elsewhere boot pid:[1]", age_s=0)
    lacking = [{key: whole[key] for key in whole if key != name} for name in whole]
    other = ({"at": "x"}, {"pid": 0}, {"pid": 1.5}, {"pid": True}, {"began": None}, {"holder": 1})
    spoilt = [whole | change for change in (*other, {"at": float("nan")}, {"began": 10**400})]
    texts = [json.dumps(lease) for lease in (*lacking, *spoilt)]
    return ["", "{}", "[]", "null", '{"at": "x"}', "[" * 100_000, *texts]


@pytest.mark.parametrize("text", damaged_leases(), ids=range(len(damaged_leases())))
def test_a_damaged_lease_is_none(tmp_path: Path, text: str) -> None:
    store = RunStore(tmp_path)
    store.write_bytes(LEASE, text.encode())
    assert not is_held_by(store, "x")
    with hold_lease(store) as holder:
        assert store.read_json(LEASE)["holder"] == holder


def test_a_lease_that_is_damaged_while_it_is_held_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.lease.HEARTBEAT_S", 0.05)
    store = RunStore(tmp_path)
    with hold_lease(store) as holder:
        for text in ("{}", "[]", '{"at": "x"}'):
            store.write_bytes(LEASE, text.encode())
            until = time.monotonic() + 10
            while not is_held_by(store, holder) and time.monotonic() < until:
                time.sleep(0.02)
            assert is_held_by(store, holder)


def test_a_holder_can_ask_whether_the_run_is_still_its_own(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    with hold_lease(store) as holder:
        assert is_held_by(store, holder) and holder_of(store) == holder
        assert not is_held_by(store, "x")
        store.write_json(LEASE, lease_of(1, began=1.0, machine="elsewhere boot pid:[1]", age_s=0))
        assert not is_held_by(store, holder)
        assert is_held_by(store, "x")
    store.delete(LEASE)
    assert not is_held_by(store, holder) and holder_of(store) is None
