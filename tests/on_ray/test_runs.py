"""Whole runs on a real Ray cluster, through the command line, killed and gone on with."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from orchestrator import export_folder, load_leaderboard
from orchestrator.runinfo import read_info
from orchestrator.store import RunStore
from tests.on_ray.lines import check_lines

pytestmark = pytest.mark.ray

MINUTES_5 = 300
SETTINGS = ("train.workers=2", "search.candidates=40", "search.limits=num_params <= 10e3")


def start(
    config: Path, out: str | Path, address: str, *more: str, cwd: Path
) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, in another working directory."""
    command = [sys.executable, "-m", "orchestrator.cli", "run", "--config", str(config)]
    settings = [f"--set={setting}" for setting in (*SETTINGS, *more)]
    return subprocess.Popen(
        [*command, "--out", str(out), "--address", address, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=MINUTES_5)
    return process.returncode, output


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> str:
    """Kill the whole process group as soon as `due`, while the command still runs; what it said."""
    deadline = time.monotonic() + MINUTES_5
    while not due():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    return finish(process)[1]


def test_a_run_killed_in_training_and_in_search_finishes_with_every_row_once(
    cluster_address: str,
    s3: str,
    tiny_config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its folder is on an object store, the one thing that driver and workers share."""
    monkeypatch.setenv("MAGIC_NAS_CACHE", str(tmp_path / "cache"))  # the workers have another
    out = s3.format("ray/run")
    store = RunStore(out)

    process = start(tiny_config, out, cluster_address, cwd=tmp_path)
    kill_when(process, lambda: store.exists("supernet/step-00000020/manifest.json"))
    assert not read_info(store).get("stages", {}).get("train")

    process = start(tiny_config, out, cluster_address, cwd=tmp_path)
    said = kill_when(process, lambda: 4 <= len(store.rows("score")) < 40).splitlines()
    before = store.rows("score")
    check_lines(said, "run", "start", "data", "train", "search")
    assert len([line for line in said if re.search(r"\brun (start|train)\b", line)]) <= 9, said
    told = [line for line in said if re.search("train: supernet: goes on from step (20|40)", line)]
    assert len(told) == 1 and re.match(r"\(\w+ pid=", told[0]), said

    code, output = finish(start(tiny_config, out, cluster_address, cwd=tmp_path))
    assert code == 0, output
    assert "train: finished before, skipped" in output

    rows = store.rows("score")
    assert rows[: len(before)] == before
    texts = [row["architecture"] for row in rows]
    assert len(texts) == len(set(texts)) == 40
    asked = [
        text
        for name in store.names("search/batches")
        for text in store.read_json(f"search/batches/{name}")["candidates"]
    ]
    assert sorted(asked) == sorted(texts)

    steps = [row["step"] for row in store.rows("train")]
    assert sorted(set(steps)) == [10, 20, 30, 40, 50, 60]

    board = load_leaderboard(out)
    assert list(board.columns)[0] == "architecture"
    assert len(board) == 40
    assert (board["num_params"] <= 10e3).all()
    assert pd.Series(board["val_loss_nats"]).is_monotonic_increasing

    info = read_info(store)
    assert list(info["stages"]) == ["data", "train", "search", "retrain", "export", "report"]
    assert [model["name"] for model in info["models"]] == ["best", "baseline", "control_0"]
    assert "driver.lease" not in store.names("")
    assert "ray" not in store.names("")
    assert (export_folder(out) / "model.safetensors").stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_run_that_is_interrupted_says_so_and_leaves_no_lock(
    cluster_address: str, tiny_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(tiny_config, out, cluster_address, cwd=tmp_path)
    deadline = time.monotonic() + MINUTES_5
    while not RunStore(out).exists("config.yaml"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    code, output = finish(process)
    assert code == 128 + signal.SIGTERM, output
    assert "the same command goes on from here" in output
    assert "Traceback" not in output
    assert not RunStore(out).exists("driver.lease")


def test_more_workers_than_the_cluster_has_are_refused_at_once(
    cluster_address: str, tiny_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    code, output = finish(start(tiny_config, out, cluster_address, "train.workers=4", cwd=tmp_path))
    assert code == 2, output
    assert "train.workers must be at most 2" in output
    assert "2 CPU cores and 0 GPUs" in output
    assert "Traceback" not in output
    assert not out.exists()


def test_an_address_where_no_cluster_answers_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, output = finish(start(tiny_config, out, "127.0.0.1:1", cwd=tmp_path))
    assert code == 2, output
    assert "127.0.0.1:1" in output
    assert "Traceback" not in output
    assert not out.exists()
