"""`magic-nas rank` on a real Ray cluster, killed and gone on with."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from ray._private import state

from orchestrator.on_ray.cluster import connect
from orchestrator.ranking import rank
from orchestrator.store import RunStore

pytestmark = pytest.mark.ray

MINUTES_5 = 300
SETTINGS = ["rank.children=10", "rank.seeds=1"]


def start(out: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "rank", str(out), "--address", address]
    return subprocess.Popen(
        [*command, *(f"--set={setting}" for setting in SETTINGS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=out.parent,
        start_new_session=True,
    )


def trainers(address: str) -> set[str]:
    """The actors that Tune has started on the cluster so far."""
    with connect(address, user_code=None):
        actors = state.actors()
    return {key for key, actor in actors.items() if actor["ActorClassName"] == "ImplicitFunc"}


def test_a_ranking_killed_on_ray_goes_on_and_agrees_with_the_in_process_one(
    cluster_address: str, trained_run: Path, tmp_path: Path
) -> None:
    out, twin = tmp_path / "run", tmp_path / "twin"
    shutil.copytree(trained_run, out)
    shutil.copytree(trained_run, twin)

    process = start(out, cluster_address)
    deadline = time.monotonic() + MINUTES_5
    while not list(out.glob("standalone/*/result.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)

    before = trainers(cluster_address)
    process = start(out, cluster_address)
    output, _ = process.communicate(timeout=MINUTES_5)
    assert process.returncode == 0, output
    assert "trainings done before" in output
    started = trainers(cluster_address) - before
    assert 1 <= len(started) <= 2, "a process for each CPU, not for each model"
    rows = RunStore(out).rows("standalone")
    assert len(rows) == len({row["name"] for row in rows}) == 10
    assert not {"standalone", "ray", "driver.lease"} & set(os.listdir(out))

    rank(twin, SETTINGS, local=True)
    here, there = (pd.read_parquet(folder / "ranking.parquet") for folder in (out, twin))
    assert here["architecture"].equals(there["architecture"])
    difference = here["standalone_loss_nats"] - there["standalone_loss_nats"]
    assert difference.abs().max() < 1e-3
