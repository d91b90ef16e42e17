"""One small Ray cluster of two nodes for all tests here, started and stopped without `ray stop`."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CONFIG = """\
data: {{source: {text}, vocab_size: 200, sequence_length: 16}}
space: {{layers: 3, hidden_size: 16}}
train: {{steps: 60, batch_size: 8, checkpoint_steps: 20, warmup_steps: 5, workers: 2}}
search:
  candidates: 40
  batch_size: 4
  valid_sequences: 16
  limits: num_params <= 10e3
  searcher: {{name: evolution, population: 10, sample: 3}}
retrain: {{steps: 30, batch_size: 8, checkpoint_steps: 10, test_sequences: 16, controls: 1}}
"""
SENTENCE = "the a cat dog sees hears runs sleeps over under red small house tree and then"


@pytest.fixture(scope="session")
def cluster_address() -> Iterator[str]:
    """The address of a cluster of two nodes, one CPU each."""
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
    yield str(cluster.address)
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of a run of seconds, on a text of its own."""
    import random

    folder = tmp_path_factory.mktemp("text")
    rng = random.Random(0)
    documents = "\n".join(" ".join(rng.choices(SENTENCE.split(), k=30)) for _ in range(600))
    (folder / "text.txt").write_text(documents)
    (folder / "config.yaml").write_text(CONFIG.format(text=folder / "text.txt"))
    return folder / "config.yaml"
