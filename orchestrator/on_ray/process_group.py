"""Forms the process group of super-net training over the network that the cluster itself uses.

Left alone, Gloo takes the address that the host's name stands for; where that is the loopback,
workers on two hosts wait for each other for ever.
"""

import logging
import os
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.train.torch import TorchConfig
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

ATTEMPTS = 3
"""How often in a row forming the group may fail before training ends with the error."""

logger = logging.getLogger(__name__)


@dataclass
class ProcessGroup(TorchConfig):  # type: ignore[misc]
    """As Ray's `TorchConfig`, over each node's interface to the cluster, and tried again.

    Args:
        watcher: an actor whose `placed` is told the nodes of the workers, by rank; empty once they
            are stopped.
    """

    watcher: Any = None

    @property
    def backend_cls(self) -> type:
        """What Ray Train's controller forms the group with."""
        return _Backend


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Lives in the controller as long as the training, through all its worker groups."""

    def __init__(self) -> None:
        self._failed = 0

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Form the group; a failure counts as one to start, which Ray Train tries again.

        Raises:
            WorkerGroupStartupFailedError: if it failed, and had not failed too often in a row.
        """
        try:
            nodes = worker_group.execute(use_cluster_interface)
            super().on_start(worker_group, backend_config)
        except RayError as error:
            worker_group.shutdown()  # Ray Train would keep its place, and wait for another
            self._failed += 1
            if self._failed >= ATTEMPTS:
                raise
            raise WorkerGroupStartupFailedError(
                f"the process group could not be formed ({self._failed} of {ATTEMPTS}): {error}"
            ) from error
        self._failed = 0
        backend_config.watcher and backend_config.watcher.placed.remote(nodes)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Say that there are no workers; the group ends with their processes."""
        backend_config.watcher and backend_config.watcher.placed.remote([])


def use_cluster_interface() -> str:
    """Have Gloo and NCCL use this node's interface to the cluster; returns the node's address.

    What the user has set stays.
    """
    address = str(ray.util.get_node_ip_address())
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")  # "=": that name, no prefix
    return address


def interface_of(address: str) -> str | None:
    """The name of the interface that carries an IP address; None if none does, as behind NAT."""
    for name, carried in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in carried):  # IPv6: fe80::1%eth0
            return name
    return None
