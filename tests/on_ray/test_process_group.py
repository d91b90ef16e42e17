"""The process group of training: over which interface, and what if it cannot be formed."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from orchestrator.on_ray.cluster import connect
from orchestrator.on_ray.process_group import ATTEMPTS, ProcessGroup, interface_of

HERE = str(Path(__file__).parent)
RAY_WAITS_S = 60.0
"""How long Ray Train would wait for room if the last group still held its place."""


def test_each_address_of_this_machine_leads_to_its_interface() -> None:
    for name, carried in psutil.net_if_addrs().items():
        for one in carried:
            if one.family == socket.AF_INET:
                assert interface_of(one.address) == name


def test_an_address_that_no_interface_carries_leads_to_none() -> None:
    assert interface_of("203.0.113.77") is None


@dataclass
class Failing(ProcessGroup):
    """Names an interface that is not there, for the first few times."""

    times: int = 0

    @property
    def backend_cls(self) -> type:
        return type("FailingBackend", (super().backend_cls,), {"on_start": _fail_first})


def _fail_first(self: Any, worker_group: Any, config: Failing) -> None:
    if self._failed < config.times:
        worker_group.execute(_break)
    super(type(self), self).on_start(worker_group, config)


def _break() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "nosuch0"


@ray.remote(num_cpus=0)
class Watcher:
    """Notes what it is told of the workers' places."""

    def __init__(self) -> None:
        self.told: list[tuple[float, list[str]]] = []

    def placed(self, nodes: list[str]) -> None:
        self.told.append((time.monotonic(), nodes))

    def all(self) -> list[tuple[float, list[str]]]:
        return self.told


def work(config: dict[str, Any]) -> None:
    """Add up over the group."""
    import torch
    import torch.distributed as dist

    ones = torch.ones(1)
    dist.all_reduce(ones)
    Path(config["folder"], str(dist.get_rank())).write_text(
        f"{ones.item():g} {os.environ['GLOO_SOCKET_IFNAME']}"
    )


def train(folder: Path, *, workers: int, times: int) -> list[tuple[float, list[str]]]:
    """Train with workers whose group fails so many times."""
    watcher = Watcher.remote()
    trainer = TorchTrainer(
        work,
        train_loop_config={"folder": str(folder)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        torch_config=Failing(backend="gloo", watcher=watcher, times=times),
        run_config=ray.train.RunConfig(name="t", storage_path=str(folder / "ray")),
    )
    try:
        trainer.fit()
    finally:
        told: list[tuple[float, list[str]]] = ray.get(watcher.all.remote())
    return told


@pytest.mark.ray
def test_a_group_that_fails_to_form_is_formed_again_over_the_clusters_interface(
    cluster_address: str, tmp_path: Path
) -> None:
    with connect(cluster_address, user_code=HERE):
        told = train(tmp_path, workers=2, times=1)
        address = ray.util.get_node_ip_address()
    assert [nodes for _, nodes in told] == [[], [address] * 2, []]
    assert told[1][0] - told[0][0] < RAY_WAITS_S
    for rank in range(2):
        assert (tmp_path / str(rank)).read_text() == f"2 {interface_of(address)}"


@pytest.mark.ray
def test_a_group_that_never_forms_ends_the_training_with_the_reason(
    cluster_address: str, tmp_path: Path
) -> None:
    with (
        connect(cluster_address, user_code=HERE),
        pytest.raises(TrainingFailedError, match="nosuch0"),
    ):
        train(tmp_path, workers=1, times=ATTEMPTS)
    assert not (tmp_path / "0").exists()
