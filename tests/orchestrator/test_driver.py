"""The whole flow in one process: what a run leaves, what it skips, and what a kill cannot lose."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from orchestrator import load_config, load_leaderboard, run, search
from orchestrator.runinfo import read_info
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint, load_checkpoint
from supernet.errors import InvalidInput
from supernet.space import Architecture

STAGES = ["data", "train", "search", "retrain", "export", "report"]


def test_a_run_leaves_what_the_readme_says(finished_run: Path) -> None:
    assert {
        "config.yaml",
        "run.json",
        "data",
        "supernet",
        "rows",
        "leaderboard.parquet",
        "retrained",
        "export",
        "report.html",
        "plots",
    } <= set(os.listdir(finished_run))
    assert "driver.lease" not in os.listdir(finished_run)
    assert {"train", "valid", "test", "tokenizer"} <= set(os.listdir(finished_run / "data"))
    assert set(os.listdir(finished_run / "retrained")) == {"best", "baseline", "control_0"}
    assert all(path.suffix == ".png" for path in (finished_run / "plots").iterdir())
    assert not list(finished_run.rglob("*.part"))


def test_the_resolved_configuration_reads_back(finished_run: Path, tiny_config: Path) -> None:
    assert load_config(finished_run / "config.yaml") == load_config(tiny_config)


def test_the_run_records_stages_versions_seed_and_results(finished_run: Path) -> None:
    info = read_info(RunStore(finished_run))
    assert list(info["stages"]) == STAGES
    for stage in STAGES:
        assert info["stages"][stage]["wall_s"] >= 0
        assert info["stages"][stage]["peak_memory_gib"] > 0
    assert info["seed"] == 0
    assert {"torch", "ray", "deepspeed", "transformers"} <= set(info["versions"])
    assert [model["name"] for model in info["models"]] == ["best", "baseline", "control_0"]
    assert set(info["unigram_nats"]) == {"valid", "test"}
    assert info["comparison"]["reason"]


def test_the_leaderboard_has_each_child_within_the_limit_once_and_best_first(
    finished_run: Path,
) -> None:
    board = load_leaderboard(finished_run)
    assert list(board.columns)[:3] == ["architecture", "rank", "val_loss_nats"]
    assert len(board) == board["architecture"].nunique() == 20
    assert (board["num_params"] <= 6e3).all()
    assert pd.Series(board["val_loss_nats"]).is_monotonic_increasing
    assert list(board["rank"]) == list(range(1, 21))
    assert read_info(RunStore(finished_run))["models"][0]["architecture"] == board.iloc[0, 0]


def test_the_scores_are_of_the_newest_checkpoint(finished_run: Path) -> None:
    store = RunStore(finished_run)
    newest = latest_checkpoint(store, "supernet", optimizer=False)
    assert newest is not None and newest.step == 60
    (version,) = set(load_leaderboard(finished_run)["supernet_version"])
    assert version.startswith("step-60-")


def test_every_model_trained_stand_alone_is_within_its_rules(finished_run: Path) -> None:
    store = RunStore(finished_run)
    for name in ("best", "baseline", "control_0"):
        result = store.read_json(f"retrained/{name}/result.json")
        weights = load_checkpoint(store, f"retrained/{name}/step-00000020").weights
        assert result["train_steps"] == 20
        assert result["num_params"] == sum(tensor.numel() for tensor in weights.values())
        rows = [row for row in store.rows("retrain") if row["name"] == name]
        assert [row["step"] for row in rows] == [10, 20]
    assert store.read_json("retrained/control_0/result.json")["num_params"] <= 6e3


def test_the_export_loads_in_transformers_and_gives_the_retrained_weights(
    finished_run: Path,
) -> None:
    from transformers import AutoModelForMaskedLM

    model = AutoModelForMaskedLM.from_pretrained(finished_run / "export", trust_remote_code=True)
    best = read_info(RunStore(finished_run))["models"][0]
    assert sum(tensor.numel() for tensor in model.parameters()) == best["num_params"]
    retrained = load_checkpoint(RunStore(finished_run), "retrained/best/step-00000020").weights
    assert model.state_dict()["head.bias"].equal(retrained["head.bias"])


def test_the_report_names_the_best_child(finished_run: Path) -> None:
    board = load_leaderboard(finished_run)
    html = (finished_run / "report.html").read_text().replace("<wbr>", "")
    assert f"{board['val_loss_nats'].iloc[0]:.3f}" in html


def test_a_second_call_skips_every_stage_and_rewrites_nothing(
    command: Any, content: Any, finished_run: Path, tiny_config: Path
) -> None:
    before, times = content(finished_run), modified(finished_run)
    done = command("run", "--config", tiny_config, "--out", finished_run)  # no Ray for no work
    assert done.code == 0
    for stage in STAGES:
        assert f"{stage}: finished before, skipped" in done.log
    assert content(finished_run) == before and modified(finished_run) == times


def modified(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_summary_shows_leaderboard_comparison_and_where_things_lie(
    command: Any, finished_run: Path
) -> None:
    done = command("run", "--out", finished_run, "--local")
    assert "Top ten of the leaderboard" in done.out
    assert load_leaderboard(finished_run)["architecture"].iloc[0] in done.out
    assert "(and 10 more)" in done.out
    for words in ("best", "baseline", "control_0", "training unigrams", "nats"):
        assert words in done.out
    assert f"{finished_run}/report.html" in done.out and f"{finished_run}/export" in done.out


def test_show_prints_as_many_lines_as_asked_for(command: Any, finished_run: Path) -> None:
    done = command("show", finished_run, "--top", 3)
    lines = done.out.splitlines()
    assert done.code == 0
    assert len(lines) == 5 and lines[0].split()[0] == "rank" and lines[-1] == "(and 17 more)"


def test_set_overrides_the_file_and_is_what_the_run_records(
    command: Any, tiny_config: Path, tmp_path: Path
) -> None:
    options = [
        "--set",
        "train.steps=20",
        "--set",
        "train.sampler={name: uniform}",
        "--set",
        "seed=3",
    ]
    done = command("train", "--config", tiny_config, "--out", tmp_path / "run", "--local", *options)
    assert done.code == 0
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["train"]["steps"] == 20 and recorded["seed"] == 3
    assert recorded["train"]["sampler"]["name"] == "uniform"
    assert recorded["train"]["batch_size"] == 8
    store = RunStore(tmp_path / "run")
    manifest = store.read_json("supernet/step-00000020/manifest.json")
    assert manifest["sampler"] == {"name": "uniform", "seed": 3, "phase": 0}
    assert [row["step"] for row in store.rows("train")] == [10, 20]


def test_the_same_seed_gives_the_same_leaderboard_and_another_one_does_not(
    finished_run: Path, tiny_config: Path, tmp_path: Path
) -> None:
    only = ("data", "train", "search")
    again = run(load_config(tiny_config), out=tmp_path / "again", local=True, only=only)
    other = run(load_config(tiny_config, ["seed=1"]), out=tmp_path / "o", local=True, only=only)
    columns = ["architecture", "val_loss_nats", "masked_accuracy", "num_params", "flops"]
    board = load_leaderboard(finished_run)[columns]
    assert load_leaderboard(again.store.uri)[columns].equals(board)
    assert not load_leaderboard(other.store.uri)[columns].equals(board)


def test_stages_one_by_one_come_to_the_same_as_run(
    command: Any, finished_run: Path, own_trained_run: Path
) -> None:
    for stage in ("search", "retrain", "export"):
        done = command(stage, "--out", own_trained_run, "--local")
        assert done.code == 0, done.err
    assert command("report", "--out", own_trained_run).code == 0
    assert (own_trained_run / "report.html").exists()
    info, wanted = (read_info(RunStore(out)) for out in (own_trained_run, finished_run))
    assert [*info["stages"], "report"] == STAGES
    assert info["models"] == wanted["models"]


class Climber:
    """Changes one operator of the best child so far; as in the README, without saved state."""

    def __init__(self, space: Any, *, seed: int) -> None:
        self.space, self.rng, self.best = space, random.Random(seed), None
        self.told: list[str] = []

    def ask(self) -> Architecture:
        if self.best is None:
            return self.space.sample(self.rng)
        return self.space.random_neighbour(self.best[1], self.rng)

    def tell(self, architecture: Architecture, metrics: dict[str, float] | None) -> None:
        if metrics:
            self.told.append(str(architecture))
            if self.best is None or metrics["val_loss_nats"] < self.best[0]:
                self.best = (metrics["val_loss_nats"], architecture)


def test_a_searcher_object_of_ones_own_searches_a_trained_run(own_trained_run: Path) -> None:
    climber = Climber(load_config(own_trained_run / "config.yaml").space.build(), seed=0)
    search(own_trained_run, searcher=climber, local=True)
    board = load_leaderboard(own_trained_run)
    assert sorted(board["architecture"]) == sorted(climber.told)
    assert climber.best is not None and str(climber.best[1]) == board["architecture"].iloc[0]


def test_an_object_that_is_no_searcher_is_refused(own_trained_run: Path) -> None:
    with pytest.raises(InvalidInput, match="lacks ask and tell"):
        search(own_trained_run, searcher=object(), local=True)  # type: ignore[arg-type]


def test_searching_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"config\.yaml"):
        search(tmp_path / "none", local=True)


def test_help_takes_less_than_a_second_and_shows_an_example() -> None:
    began = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "--help"], capture_output=True, text=True
    )
    ended = os.times()
    spent = ended.children_user + ended.children_system - began.children_user
    assert done.returncode == 0 and "magic-nas run --config" in done.stdout
    assert spent - began.children_system < 1.0


def start(out: Path, *options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *map(str, options), "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen[str], due: Callable[[], bool]) -> None:
    """SIGKILL as soon as `due`; the command must still be at work then."""
    deadline = time.monotonic() + 120
    while not due():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


SLOWLY = """\
import time
from supernet.operators import Identity


class Slow(Identity):
    \"\"\"Nothing, but it takes a while.\"\"\"

    def forward(self, hidden, mask):
        time.sleep(0.03)
        return hidden
"""


@pytest.fixture
def slow_options(tiny_config: Path, tmp_path: Path) -> list[object]:
    """A run that leaves time to be killed."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/slow_operator.py").write_text(SLOWLY)
    sets = [
        f"user_code={tmp_path / 'code'}",
        "space.candidates.slow={kind: 'slow_operator:Slow'}",
        "space.candidates.attention={kind: attention}",
        "space.candidates.conv3={kind: separable_conv}",
        "space.candidates.feed_forward={kind: feed_forward, inner_size: 16}",
        "train.checkpoint_steps=10",
        "train.keep_checkpoints=9",
        "search.batch_size=2",
    ]
    return ["--config", tiny_config, "--local", *(x for each in sets for x in ("--set", each))]


@pytest.mark.slow
def test_a_run_killed_in_data_training_and_search_loses_and_doubles_no_row(
    command: Any, tmp_path: Path, slow_options: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "run"
    store = RunStore(out)
    kill_when(start(out, "run", *slow_options), lambda: store.exists("driver.lease"))
    assert not read_info(store).get("stages", {}).get("train")

    kill_when(start(out, "run", *slow_options), lambda: len(store.names("supernet")) >= 3)
    whole = latest_checkpoint(store, "supernet")
    trained = [row for row in store.rows("train") if whole and row["step"] <= whole.step]
    assert trained and "train" not in read_info(store)["stages"]

    kill_when(start(out, "run", *slow_options), lambda: len(store.rows("score")) >= 4)
    scored = store.rows("score")
    assert len(scored) < 20 and "search" not in read_info(store)["stages"]

    done = command("search", "--out", out, *slow_options)
    assert done.code == 0, done.err
    assert "train" in read_info(store)["stages"]

    assert store.rows("train")[: len(trained)] == trained
    assert [row["step"] for row in store.rows("train")] == [10, 20, 30, 40, 50, 60]
    assert store.rows("score")[: len(scored)] == scored
    texts = [row["architecture"] for row in store.rows("score")]
    assert len(texts) == len(set(texts)) == 20
    asked = [
        text
        for name in store.names("search/batches")
        for text in store.read_json(f"search/batches/{name}")["candidates"]
    ]
    assert sorted(asked) == sorted(texts) == sorted(load_leaderboard(out)["architecture"])

    undisturbed = run(
        load_config(out / "config.yaml"), out=tmp_path / "calm", local=True, only=STAGES[:3]
    )
    assert weights_of(undisturbed.store) == weights_of(store)
    calm = load_leaderboard(undisturbed.store.uri)
    assert list(calm["architecture"]) == list(load_leaderboard(out)["architecture"])


def weights_of(store: RunStore) -> bytes:
    return store.read_bytes("supernet/step-00000060/weights.safetensors")


def test_a_run_killed_before_its_first_record_goes_on(
    command: Any, tiny_config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "driver.lease").write_text(
        json.dumps({"host": "gone", "pid": 1, "began": 0.0, "at": 0.0})
    )
    assert command("train", "--config", tiny_config, "--out", out, "--local").code == 0


def test_a_run_killed_between_its_data_and_their_record_prepares_them_again(
    command: Any, own_trained_run: Path
) -> None:
    shutil.rmtree(own_trained_run / "supernet")
    info = json.loads((own_trained_run / "run.json").read_text())
    del info["stages"]
    (own_trained_run / "run.json").write_text(json.dumps(info))
    (own_trained_run / ".data-left").mkdir()
    (own_trained_run / "data/summary.json").unlink()
    done = command("train", "--out", own_trained_run, "--local")
    assert done.code == 0, done.err
    assert not (own_trained_run / ".data-left").exists()
    assert list(read_info(RunStore(own_trained_run))["stages"]) == ["data", "train"]


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_goes_on(
    slow_options: list[object], tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "run"
    store = RunStore(out)
    process = start(out, "train", *slow_options)
    while not store.names("supernet"):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "the same command goes on from here" in output and "Traceback" not in output
    assert not store.exists("driver.lease")
    assert read_info(store)["interrupted_s"]["train"] > 0
    assert command("train", "--out", out, *slow_options).code == 0


def test_a_second_driver_is_refused_and_the_first_ones_files_stay(
    command: Any, content: Any, tiny_config: Path, tmp_path: Path
) -> None:
    from orchestrator.lease import hold_lease

    store = RunStore(tmp_path / "run")
    with hold_lease(store):
        done = command("train", "--config", tiny_config, "--out", tmp_path / "run", "--local")
        assert store.exists("driver.lease")
    assert done.code == 2
    assert "one driver at a time" in done.err and str(os.getpid()) in done.err


ALIGN = "train.align={weight: 0.5, start: 0.3, interval: 5, sequences: 8}"


def test_magic_a_keeps_its_anchors_and_the_report_shows_them(
    tmp_path: Path, tiny_config: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    done = command("train", "--config", tiny_config, "--out", out, "--local", "--set", ALIGN)
    assert done.code == 0, done.err
    store = RunStore(out)
    anchors = store.rows("anchor")
    assert [row["step"] for row in anchors][0] == 18
    assert all(row["val_loss_nats"] < row["previous_loss_nats"] for row in anchors[1:])
    newest = latest_checkpoint(store, "supernet", optimizer=False)
    assert newest is not None and newest.extra["anchor"] == anchors[-1]
    distances = {row["step"]: row["alignment_loss"] for row in store.rows("train")}
    assert distances[10] == 0.0 and distances[60] > 0.0
    assert command("report", "--out", out).code == 0
    page = (out / "report.html").read_text()
    assert "MAGIC-A with λ 0.5" in page and "<h3>Anchors</h3>" in page
    assert (out / "plots" / "anchors.png").stat().st_size > 5_000


def test_a_super_net_that_learnt_nothing_has_collapsed_and_fails_the_command(
    tmp_path: Path, tiny_config: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "run"
    given = ["--out", out, "--local", "--set", "train.collapsed_within_nats=0.1"]
    for _ in range(2):  # the same command says the same
        done = command("run", "--config", tiny_config, *given)
        assert done.code == 1
        assert "the super-net has collapsed" in done.err and "train longer" in done.err
    info = read_info(RunStore(out))
    assert info["supernet"]["collapsed"] is True and list(info["stages"]) == ["data"]
    assert info["supernet"]["probe_loss_nats"] > info["supernet"]["unigram_nats"] - 0.1
    command("report", "--out", out)
    assert "The super-net has collapsed" in (out / "report.html").read_text()
