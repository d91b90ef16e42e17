"""Searches on a real cluster whose driver, evaluators and scorers die: nothing lost or doubled.

MAGIC_NAS_KILLS sets how often the driver and the evaluators are killed, 2 by default.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator import search
from orchestrator.config import load
from orchestrator.store import RunStore
from supernet.space import Architecture

pytestmark = pytest.mark.ray

KILLS = int(os.environ.get("MAGIC_NAS_KILLS", "2"))
CODE = """
import os, time
from pathlib import Path
from orchestrator.searchers import RandomSearcher

def score(child, *, folder, seconds=0.05):
    Path(folder, str(os.getpid())).touch()
    time.sleep(seconds)
    return {"value": float(len(str(child)))}

def rogue(child, *, folder):
    first = child.operators[0]
    if first == "conv3":
        os._exit(1)
    if first == "conv7":
        time.sleep(60)
    return {"attention": {"value": float("nan")}, "identity": {"valeu": 1.0}}.get(
        first, {"value": 1.0}
    )

def failing(child):
    raise ValueError("no such child")

class Noting(RandomSearcher):
    def __init__(self, space, *, seed, file):
        super().__init__(space, seed=seed)
        self.file = file

    def tell(self, child, metrics):
        with open(self.file, "a") as file:
            print(child, metrics and metrics.get("value"), file=file)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own.py").write_text(CODE)
    (tmp_path / "evaluators").mkdir()
    return tmp_path


def write_config(folder: Path, **settings: Any) -> Path:
    values = {
        "user_code": str(folder / "code"),
        "space": {"layers": 6},
        "search": {
            "scorer": {"name": "own:score", "folder": str(folder / "evaluators")},
            "searcher": {"name": "random"},
            "objectives": {"value": "max"},
            "evaluators": 2,
            **settings,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Command:
    """`magic-nas search` in a process of its own; what it says is read as it comes."""

    def __init__(self, folder: Path, address: str) -> None:
        self._log = folder / f"log-{time.monotonic_ns()}"
        command = [sys.executable, "-u", "-m", "orchestrator.cli", "search", "--address", address]
        paths = ["--config", str(folder / "config.yaml"), "--out", str(folder / "run")]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *paths], stdout=log, stderr=subprocess.STDOUT, cwd=folder
            )

    def output(self) -> str:
        return self._log.read_text()

    def wait_until(self, due: Any) -> float:
        """Seconds until it holds, or until the command has ended."""
        began = time.monotonic()
        while not due() and self.process.poll() is None:
            assert time.monotonic() - began < 120, self.output()
            time.sleep(0.02)
        return time.monotonic() - began

    def wait_for_ray(self) -> None:
        self.wait_until(lambda: "Ray has" in self.output())

    def kill(self) -> bool:
        """Whether it still ran."""
        running = self.process.poll() is None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return running

    def finish(self, code: int = 0) -> str:
        assert self.process.wait(timeout=300) == code, self.output()
        assert "Traceback" not in self.output()
        return self.output()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return RunStore(folder / "run").rows("score")


def asked(folder: Path) -> list[str]:
    store = RunStore(folder / "run")
    return [
        text
        for name in store.names("search/batches")
        for text in store.read_json(f"search/batches/{name}")["candidates"]
    ]


def undisturbed(folder: Path) -> list[str]:
    """The children that the same search asks for in one process."""
    config = load(folder / "config.yaml", ["search.scorer.seconds=0"])
    search(folder / "calm", config=config, local=True)
    store = RunStore(folder / "calm")
    return [row["architecture"] for row in store.rows("score")]


@pytest.mark.parametrize(
    ("settings", "seed"),
    [
        ({"searcher": {"name": "random"}}, 0),
        ({"searcher": {"name": "evolution"}, "batch_size": 8, "in_flight": 1}, 1),
    ],
    ids=["random", "evolution"],
)
def test_a_search_whose_driver_is_killed_goes_the_same_way(
    cluster_address: str,
    folder: Path,
    settings: dict[str, Any],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own", raising=False)
    write_config(folder, candidates=120 * (KILLS + 1), **settings)
    rng, kills, going_on_s = random.Random(seed), 0, []
    for number in range(KILLS):
        before = rows_of(folder)
        command = Command(folder, cluster_address)
        command.wait_for_ray()
        if number:  # the first one is killed while it starts
            going_on_s.append(command.wait_until(lambda: len(rows_of(folder)) > len(before)))  # noqa: B023
        time.sleep(rng.uniform(0, 3))
        kills += command.kill()
        assert rows_of(folder)[: len(before)] == before
    Command(folder, cluster_address).finish()

    texts = [row["architecture"] for row in rows_of(folder)]
    assert kills == KILLS
    assert len(texts) == len(set(texts)) == 120 * (KILLS + 1)
    assert sorted(asked(folder)) == sorted(texts)
    expected = undisturbed(folder)
    if settings["searcher"]["name"] == "random":
        assert set(texts) == set(expected)
    else:
        assert asked(folder) == expected
    print(json.dumps({"kills": kills, "rows": len(texts), "going_on_s": going_on_s}))


def test_children_of_evaluators_that_are_killed_are_scored_and_told_once(
    cluster_address: str, folder: Path
) -> None:
    told = folder / "told"
    searcher = {"name": "own:Noting", "file": str(told)}
    write_config(folder, candidates=100 * (KILLS + 1), searcher=searcher)
    command, rng, killed = Command(folder, cluster_address), random.Random(0), 0
    command.wait_for_ray()
    while killed < KILLS and command.process.poll() is None:
        time.sleep(rng.uniform(1, 3))
        alive = list(evaluators(folder))
        if alive:
            rng.choice(alive).kill()
            killed += 1
    command.finish()

    rows = rows_of(folder)
    texts = [row["architecture"] for row in rows]
    assert killed == KILLS
    assert len(texts) == len(set(texts)) == 100 * (KILLS + 1)
    assert sorted(asked(folder)) == sorted(texts)
    assert {row["error"] for row in rows} == {None}
    scores = [f"{row['architecture']} {row['value']}" for row in rows]
    assert sorted(line for line in told.read_text().splitlines() if "None" not in line) == sorted(
        scores
    )
    print(json.dumps({"killed": killed, "rows": len(rows)}))


def evaluators(folder: Path) -> Iterator[psutil.Process]:
    """The processes that have scored and still run."""
    for path in (folder / "evaluators").iterdir():
        if psutil.pid_exists(int(path.name)):
            yield psutil.Process(int(path.name))
        else:
            path.unlink()


def test_children_that_cannot_be_scored_become_rows_with_their_errors(
    cluster_address: str, folder: Path
) -> None:
    scorer = {"name": "own:rogue", "folder": str(folder / "evaluators")}
    write_config(folder, candidates=6, scorer=scorer, timeout_s=1.0, max_failed=1.0)
    Command(folder, cluster_address).finish()
    errors = {
        "conv3": r"3 evaluators died",
        "conv7": r"took longer than 1 s",
        "attention": r"metric 'value' must be a finite number, but is nan",
        "identity": r"a score must hold 'value'",
    }
    rows = rows_of(folder)
    assert len({row["architecture"] for row in rows}) == len(rows) == 6
    assert {row["architecture"].split("-")[0] for row in rows} == {*errors, "feed_forward"}
    for row in rows:
        expected = errors.get(Architecture.parse(row["architecture"]).operators[0])
        assert (row["error"] is None) == (expected is None)
        assert expected is None or re.search(expected, row["error"]), row


def test_a_search_of_which_most_children_fail_stops_and_says_why(
    cluster_address: str, folder: Path
) -> None:
    write_config(folder, candidates=200, scorer={"name": "own:failing"})
    output = Command(folder, cluster_address).finish(code=1)
    assert "have failed, more than search.max_failed 0.5 allows" in output
    assert "ValueError: no such child" in output
    assert 10 <= len(rows_of(folder)) < 200
