"""What `magic-nas doctor` makes of what nodes say of themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import node_copy
from orchestrator.doctor import (
    GIB,
    NodeFacts,
    diagnose,
    doctor,
    software_faults,
    storage_fault,
)
from orchestrator.on_ray import node_probe
from orchestrator.store import RunStore

DRIVER = NodeFacts(
    "the driver",
    python="3.11.7",
    versions={"magic-nas": "0.1.0", "torch": "2.13.0", "ray": "2.60.0"},
    source="0123456789ab",
)
FIT = replace(
    DRIVER,
    name="10.0.0.2",
    cpus=8,
    disk_free={"/tmp/ray": 100 * GIB, "~/.cache": 90 * GIB},
    memory_free=30 * GIB,
    object_store=10 * GIB,
    shm_size=16 * GIB,
    shm_free=15 * GIB,
)
BUILDS: dict[str, Any] = {"compiler": "/usr/bin/c++", "ninja": True}
GPU = replace(FIT, gpus=2, torch_gpus=2, **BUILDS)


@pytest.mark.parametrize("node", [FIT, GPU])
def test_a_fit_node_needs_no_remedy(node: NodeFacts) -> None:
    found = diagnose([node], DRIVER, storage="/shared/run")
    assert not found.remedies
    assert "(!)" not in found.table


def test_the_table_has_a_row_per_node_and_a_column_per_check() -> None:
    head, *rows = diagnose([FIT, GPU], DRIVER, storage=None).table.splitlines()
    assert head.split()[:2] == ["node", "Python"]
    assert "storage" not in head
    for row, words in zip(
        rows,
        [
            ["10.0.0.2", "3.11.7", "same", "8 CPUs, 0 GPUs", "90.0 GiB", "30.0 GiB", "not needed"],
            ["10.0.0.2", "2 GPUs", "15.0 GiB of 16.0 GiB", "c++"],
        ],
        strict=True,
    ):
        assert [word for word in words if word not in row] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": "TimeoutError: no answer within 90 s"}, ["must answer", "within 90 s"]),
        ({"python": "3.12.1"}, ["Python must be the driver's 3.11.7", "is 3.12.1"]),
        (
            {"versions": DRIVER.versions | {"torch": "2.12.0"}},
            ["torch must be the driver's 2.13.0", "is 2.12.0", "constraints.txt"],
        ),
        ({"versions": {"magic-nas": "0.1.0", "torch": "2.13.0"}}, ["ray must be", "is missing"]),
        ({"source": "ba9876543210"}, ["driver's source 0123456789ab", "is of ba9876543210"]),
        ({"source": ""}, ["driver's source 0123456789ab", "is of none"]),
        ({**BUILDS, "gpus": 2}, ["the 2 GPUs that Ray offers", "sees 0", "--num-gpus 0"]),
        ({"torch_gpus": None}, ["'import torch' fails"]),
        ({"disk_free": {"/tmp/ray": GIB, "~/.cache": 9 * GIB}}, ["/tmp/ray must", "has 1.0 GiB"]),
        ({"memory_free": GIB // 2}, ["1.0 GiB of memory must be free", "0.5 GiB is"]),
        ({"shm_size": GIB // 16}, ["object store of 10.0 GiB", "0.1 GiB", "--shm-size"]),
        ({**BUILDS, "gpus": 1, "torch_gpus": 1, "compiler": None}, ["needs a C++ compiler", "g++"]),
        ({**BUILDS, "gpus": 1, "torch_gpus": 1, "ninja": False}, ["needs ninja"]),
        ({"storage": "it does not see it"}, ["/shared/run", "but it does not see it", "--out"]),
    ],
)
def test_each_failure_marks_the_node_and_has_one_remedy(
    changes: dict[str, Any], words: list[str]
) -> None:
    found = diagnose([FIT, replace(FIT, name="10.0.0.3", **changes)], DRIVER, storage="/shared/run")
    (remedy,) = found.remedies
    assert remedy.startswith("10.0.0.3: ")
    assert [word for word in words if word not in remedy] == []
    good, bad = found.table.splitlines()[1:]
    assert "(!)" not in good
    assert "(!)" in bad or "NO ANSWER" in bad


def test_before_a_run_only_software_and_storage_count() -> None:
    poor = replace(FIT, memory_free=0, shm_size=0)
    assert software_faults(poor, DRIVER) == []
    assert storage_fault(poor, "/shared/run") is None
    silent = NodeFacts("10.0.0.4", error="TimeoutError")
    assert len(software_faults(silent, DRIVER)) == 1


@contextmanager
def no_cluster(*_: Any, **__: Any) -> Iterator[Any]:
    class Nowhere:
        nodes = ()

    yield Nowhere()


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where `orchestrator.on_ray.nodes.look_at_nodes` can be replaced; no cluster is needed."""
    monkeypatch.setattr("orchestrator.on_ray.cluster.connect", no_cluster)
    return monkeypatch


def look(store: RunStore, *, thorough: bool) -> list[NodeFacts]:
    """Leaves a new folder behind, as every probe of the storage does."""
    store.write_bytes(".probe", b"")
    store.delete(".probe")
    assert store.exists()
    return [FIT]


def test_doctor_leaves_no_folder(asking: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asking.setattr("orchestrator.on_ray.nodes.look_at_nodes", look)
    doctor(None, out=str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.yaml", ".probe-of-a-driver"])
def test_doctor_leaves_a_run_alone_that_begins_meanwhile(
    asking: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def look_while_a_run_begins(store: RunStore, *, thorough: bool) -> list[NodeFacts]:
        RunStore(tmp_path / "run").write_bytes(name, b"a run's")
        return look(store, thorough=thorough)

    asking.setattr("orchestrator.on_ray.nodes.look_at_nodes", look_while_a_run_begins)
    doctor(None, out=str(tmp_path / "run"))
    assert (tmp_path / "run" / name).read_bytes() == b"a run's"


class FakeProcess:
    """What `psutil.process_iter` gives."""

    def __init__(self, *cmdline: str) -> None:
        self.info = {"cmdline": list(cmdline) or None}


RAY = "/venv/lib/python3.11/site-packages/ray"
GCS = "--gcs-address=10.0.0.1:6379"
LOG_MONITOR = FakeProcess("python", "-u", f"{RAY}/_private/log_monitor.py", "--logs-dir=/x", GCS)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[FakeProcess]:
    """The processes of a head, to be added to; it is KubeRay's."""
    there = [FakeProcess(), FakeProcess("bash"), LOG_MONITOR]
    monkeypatch.setattr("psutil.process_iter", lambda _: there)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    return there


def monitor(*arguments: str, gcs: str = GCS) -> FakeProcess:
    return FakeProcess("python", "-u", f"{RAY}/autoscaler/_private/monitor.py", gcs, *arguments)


def test_a_head_without_a_monitor_on_kubernetes_has_kuberays_autoscaler(
    processes: list[FakeProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node_probe.autoscaler_config("10.0.0.1:6379") == {}
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert node_probe.autoscaler_config("10.0.0.1:6379") is None


def test_a_head_whose_monitor_follows_no_cluster_file_has_no_autoscaler(
    processes: list[FakeProcess],
) -> None:
    processes.append(monitor())
    assert node_probe.autoscaler_config("10.0.0.1:6379") is None


def test_a_heads_monitor_says_which_cluster_file_it_follows(
    processes: list[FakeProcess], tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("max_workers: 7\n")
    follows = f"--autoscaling-config={tmp_path}/c.yaml"
    processes.append(monitor(follows, gcs="--gcs-address=10.0.0.1:9999"))
    assert node_probe.autoscaler_config("10.0.0.1:6379") == {}
    processes.append(monitor(follows))
    assert node_probe.autoscaler_config("10.0.0.1:6379") == {"max_workers": 7}


def test_a_nodes_own_cache_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from orchestrator.on_ray.nodes import CACHE

    assert node_probe.CACHE == node_copy.CACHE
    monkeypatch.setattr(node_probe, "_torch_gpus", lambda: 0)
    monkeypatch.delenv(node_probe.CACHE, raising=False)
    assert set(node_probe.look(None, ["/tmp", CACHE])["disk_free"]) == {"/tmp", "~/.cache"}
    own = str(tmp_path / "not-yet" / "there")
    monkeypatch.setenv(node_probe.CACHE, own)
    free = node_probe.look(None, ["/tmp", CACHE])["disk_free"]
    assert set(free) == {"/tmp", own} and free[own] > 0
