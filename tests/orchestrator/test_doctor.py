"""What `magic-nas doctor` makes of what nodes say of themselves."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.doctor import GIB, NodeFacts, diagnose, software_faults, storage_fault

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
