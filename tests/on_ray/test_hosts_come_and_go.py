"""Nodes that join and leave while a stage runs; each node here is a raylet of its own."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.store import RunStore

pytestmark = pytest.mark.ray

MINUTES_5 = 300
CHILDREN = 160
SCORER = """
import time
from pathlib import Path

import ray

def score(child, *, folder):
    Path(folder, ray.get_runtime_context().get_node_id()).touch()
    time.sleep(0.2)
    return {"value": float(len(str(child)))}
"""


@pytest.fixture
def join(ray_cluster: Any) -> Iterator[Callable[..., Any]]:
    """Adds a node; those that are still there at the end are taken away."""
    nodes: list[Any] = []

    def add(**resources: Any) -> Any:
        nodes.append(ray_cluster.add_node(wait=False, **resources))
        return nodes[-1]

    yield add
    for node in nodes:
        if node in ray_cluster.worker_nodes:
            ray_cluster.remove_node(node)


class Command:
    """`magic-nas` in a process of its own."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self._log = folder / f"log-{time.monotonic_ns()}"
        command = [sys.executable, "-u", "-m", "orchestrator.cli", *map(str, arguments)]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def output(self) -> str:
        return self._log.read_text()

    def wait_until(self, due: Callable[[], Any]) -> None:
        deadline = time.monotonic() + MINUTES_5
        while not due():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def finish(self) -> str:
        assert self.process.wait(timeout=MINUTES_5) == 0, self.output()
        return self.output()


def test_training_whose_only_host_is_lost_waits_for_another_and_goes_on_from_the_checkpoint(
    ray_cluster: Any, join: Callable[..., Any], tiny_config: Path, tmp_path: Path
) -> None:
    store = RunStore(tmp_path / "run")
    host = join(num_cpus=1, resources={"trainer": 1})
    steps = 400
    command = Command(
        tmp_path,
        *("train", "--config", tiny_config, "--out", tmp_path / "run"),
        *("--address", ray_cluster.address, "--set", f"train.steps={steps}"),
    )
    command.wait_until(lambda: len(store.names("supernet")) > 2)
    ray_cluster.remove_node(host)
    there = max(store.names("supernet"))
    command.wait_until(lambda: "waiting for 1 training worker" in command.output())
    join(num_cpus=1, resources={"trainer": 1})
    output = command.finish()

    assert "plan of train: 1 training worker, pack of 1 CPU, on a 'trainer' node each" in output
    assert "waiting for 1 training worker of 1 CPU, on a 'trainer' node each" in output
    assert "the cluster has room for 0 now" in output
    rows = [row["step"] for row in store.rows("train")]
    assert len(rows) == len(set(rows)), "steps that a checkpoint holds were done again"
    assert int(there.removeprefix("step-")) < max(rows) == steps


def test_a_search_uses_a_node_that_joins_and_does_without_one_that_leaves(
    ray_cluster: Any, join: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(SCORER)
    used = tmp_path / "nodes"
    used.mkdir()
    settings = {
        "user_code": str(tmp_path),
        "space": {"layers": 6},
        "search": {
            "scorer": {"name": "own:score", "folder": str(used)},
            "searcher": {"name": "random"},
            "objectives": {"value": "max"},
            "candidates": CHILDREN,
            "batch_size": 20,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    store = RunStore(tmp_path / "run")
    command = Command(
        tmp_path,
        *("search", "--config", tmp_path / "config.yaml", "--out", tmp_path / "run"),
        *("--address", ray_cluster.address),
    )
    command.wait_until(lambda: len(store.rows("score")) >= 20)
    joined = join(num_cpus=1)
    command.wait_until(lambda: joined.node_id in names_in(used))
    ray_cluster.remove_node(joined)
    left = len(store.rows("score"))
    command.finish()

    rows = store.rows("score")
    assert left < CHILDREN, "the search was over before the node left"
    assert len(rows) == len({row["architecture"] for row in rows}) == CHILDREN
    assert {row["error"] for row in rows} == {None}
    assert len(names_in(used)) == 3


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
