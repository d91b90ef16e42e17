"""A whole run on a real Ray cluster whose folder is on an object store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import export_folder, load_leaderboard
from orchestrator.runinfo import read_info
from orchestrator.store import RunStore

pytestmark = pytest.mark.ray

SETTINGS = (
    "train.workers=2",
    "train.steps=20",
    "search.candidates=8",
    "search.limits=''",
    "retrain.steps=10",
    "retrain.controls=0",
)


def test_a_run_goes_from_text_to_export_by_workers_that_share_nothing_but_the_object_store(
    cluster_address: str, s3: str, tiny_config: Path, tmp_path: Path
) -> None:
    out = s3.format("ray/run")
    command = [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(tiny_config)]
    settings = [f"--set={setting}" for setting in SETTINGS]
    done = subprocess.run(
        [*command, "--out", out, "--address", cluster_address, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MAGIC_NAS_CACHE": str(tmp_path / "cache")},  # the workers have another
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    store = RunStore(out)
    info = read_info(store)
    assert list(info["stages"]) == ["data", "train", "search", "retrain", "export", "report"]
    assert [row["step"] for row in store.rows("train")] == [10, 20]
    assert len(load_leaderboard(out)) == 8
    assert [model["name"] for model in info["models"]] == ["best", "baseline"]
    assert "ray" not in store.names("") and "driver.lease" not in store.names("")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert (export_folder(out) / "model.safetensors").stat().st_size > 0
