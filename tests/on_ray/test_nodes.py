"""Every node of a real cluster is asked before a run starts, and by `magic-nas doctor`."""

import os
import shutil
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import RunStore

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ray


def test_doctor_asks_every_node_and_leaves_nothing(
    command: Any, cluster_address: str, tiny_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = command("doctor", "--address", cluster_address, "--config", tiny_config, "--out", out)
    head, *rows = done.out.split("\n\n")[0].splitlines()
    assert head.split()[0] == "node"
    assert len(rows) == 2
    assert "(head)" in rows[0] and "(head)" not in rows[1]
    for row in rows:
        assert "same" in row and "reached" in row and "1 CPUs, 0 GPUs" in row
    assert done.code == ("(!)" in done.out)
    assert done.code or "every node is fit" in done.out
    assert not out.exists()


def test_a_run_is_refused_where_a_node_has_another_version(
    ray_cluster: Any, tiny_config: Path, tmp_path: Path
) -> None:
    """A node whose workers import an altered copy of our modules and find another torch."""
    other, out = tmp_path / "other", tmp_path / "run"
    for package in ("orchestrator", "evaluators", "supernet"):
        shutil.copytree(ROOT / package, other / package)
    with (other / "supernet" / "loss.py").open("a") as file:
        file.write("# altered\n")
    (other / "torch-1.0.dist-info").mkdir()
    (other / "torch-1.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.0\n")
    node = ray_cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(other)})
    try:
        message = refused(tiny_config, out, ray_cluster.address)
    finally:
        ray_cluster.remove_node(node)
    torch, ours = message.splitlines()
    assert f"torch must be the driver's {version('torch')}, but is 1.0" in torch
    assert "magic-nas must be of the driver's source" in ours
    assert node.node_id[:6] in torch and node.node_id[:6] in ours
    assert not out.exists()


def refused(config: Path, out: Path, address: str) -> str:
    """What `magic-nas run` says when it refuses."""
    command = [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(config)]
    done = subprocess.run(
        [*command, "--out", str(out), "--address", address],
        capture_output=True,
        text=True,
        cwd=out.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.split("magic-nas: ", 1)[1].strip()


def test_a_storage_that_a_node_does_not_see_is_left_alone(tmp_path: Path) -> None:
    from orchestrator.on_ray import node_probe

    store = RunStore(tmp_path / "there")
    store.write_bytes(".probe", b"text")
    assert node_probe._storage(store.uri, ".probe", "text") is None
    assert list(tmp_path.rglob(".probe*")) == [tmp_path / "there" / ".probe"]
    assert "does not see" in str(node_probe._storage(str(tmp_path / "new"), ".probe", "text"))
    assert not (tmp_path / "new").exists()
    assert "something else" in str(node_probe._storage(store.uri, ".probe", "other"))


def test_a_node_that_does_not_answer_is_said_to(
    cluster_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.on_ray import nodes
    from orchestrator.on_ray.cluster import connect

    monkeypatch.setattr(nodes, "ANSWER_S", 0.01)
    with connect(cluster_address, user_code=None):
        found = nodes.look_at_nodes(None, thorough=False)
    assert [node.error for node in found] == ["TimeoutError: no answer within 0 s"] * 2


def test_the_probe_runs_where_magic_nas_is_missing(tmp_path: Path) -> None:
    """It travels by value; here to a process in which none of our packages can be imported."""
    from ray import cloudpickle

    import orchestrator.on_ray.nodes  # noqa: F401  registers the probe's module
    from orchestrator.on_ray import node_probe

    (tmp_path / "probe").write_bytes(cloudpickle.dumps(node_probe.look))
    code = """
        import importlib.util, pickle, sys
        for name in ("orchestrator", "evaluators", "supernet"):
            sys.modules[name] = None
        find = importlib.util.find_spec
        ours = ("orchestrator", "evaluators", "supernet")
        importlib.util.find_spec = lambda name: None if name in ours else find(name)
        look = pickle.load(open("probe", "rb"))
        found = look(("/nowhere", "name", "text"), None)
        assert found["versions"]["ray"] and found["source"] == "", found
        assert found["storage"].startswith("ModuleNotFoundError"), found
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, check=True)
