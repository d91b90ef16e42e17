"""One small Ray cluster of two nodes for all tests here, started and stopped without `ray stop`."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

os.makedirs("/tmp/ray", exist_ok=True)  # Ray's Cluster writes its address there, wherever it lies


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A cluster of two nodes, one CPU each; a test takes away again what it adds."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="mn", dir="/tmp")  # Ray's sockets want short paths
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "temp_dir": folder},
    )
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster_address(ray_cluster: Any) -> str:
    """The address of that cluster."""
    return str(ray_cluster.address)
