"""A whole run in one process whose folder is on an object store; killed, and gone on with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import export_folder
from orchestrator.runinfo import read_info
from orchestrator.store import RunStore

STAGES = ["data", "train", "search", "retrain", "export", "report"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's cache, empty."""
    monkeypatch.setenv("MAGIC_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def start(config: Path, out: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "orchestrator.cli", "run", "--local", "--config", str(config)]
    return subprocess.Popen(
        [*command, "--out", out, "--set", "trackers=[{name: tensorboard}, {name: optuna}]"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not due():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_run_killed_in_training_and_in_search_goes_on_from_the_object_store(
    s3: str, tiny_config: Path, finished_run: Path, tmp_path: Path, cache: Path
) -> None:
    out = s3.format("killed/run")
    store = RunStore(out)
    kill_when(start(tiny_config, out, tmp_path), lambda: bool(store.rows("train")))
    kill_when(start(tiny_config, out, tmp_path), lambda: bool(store.rows("score")))
    before = store.rows("score")
    assert before and "search" not in read_info(store)["stages"]

    last = start(tiny_config, out, tmp_path)
    said, _ = last.communicate(timeout=240)
    assert last.returncode == 0, said
    assert "train: finished before, skipped" in said
    assert "s3://runs/killed/run/report.html" in said and "endpoint_override" not in said
    assert list(read_info(store)["stages"]) == STAGES

    alike = RunStore(finished_run)
    rows = store.rows("score")
    assert rows[: len(before)] == before
    assert [row["architecture"] for row in rows] == [
        row["architecture"] for row in alike.rows("score")
    ]
    assert [row["val_loss_nats"] for row in rows] == [
        row["val_loss_nats"] for row in alike.rows("score")
    ]
    left = {"driver.lease", "trackers.json", "tensorboard", "optuna.journal"}
    assert set(store.names("")) - left == set(os.listdir(finished_run)) - left
    assert not store.exists("driver.lease")
    assert store.exists("optuna.journal") and store.names("tensorboard")
    assert [path.name for path in tmp_path.iterdir() if path != cache] == []
    assert not list(cache.glob("work-*")) and not list(cache.glob("*.partial"))

    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(export_folder(out), trust_remote_code=True)
    best = read_info(store)["models"][0]
    assert sum(tensor.numel() for tensor in model.parameters()) == best["num_params"]
