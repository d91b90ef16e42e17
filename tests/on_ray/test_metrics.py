"""Real Prometheus with our configuration beside real runs: every panel has data."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from orchestrator.store import RunStore

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="Prometheus is not installed: apt-get install prometheus",
    ),
]

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
SCRAPE_S = 1
CHILDREN = 40
METRIC = "ray_magic_nas_[a-z_]+"
CODE = """
import os, time
from pathlib import Path

def score(child, *, folder):
    Path(folder, str(os.getpid())).touch()
    time.sleep(0.4)
    if child.operators[0] == "conv3":
        raise ValueError("no such child")
    return {"value": float(len(str(child)))}
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mm", dir="/tmp"))  # Ray's sockets want short paths
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def ray_api() -> str:
    """Where the dashboard of that cluster will be."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def ray_address(folder: Path, ray_api: str) -> Iterator[str]:
    """A cluster whose metrics are exported, every second."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "include_dashboard": True,
            "dashboard_port": int(ray_api.rpartition(":")[2]),
            "temp_dir": str(folder / "ray"),
            "_system_config": {"metrics_report_interval_ms": 1000 * SCRAPE_S},
        },
    )
    yield str(cluster.address)
    cluster.shutdown()


class Prometheus:
    """The real one, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._url = f"http://127.0.0.1:{free_port()}"
        self._began = time.time()
        config = yaml.safe_load((DASHBOARDS / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = f"{SCRAPE_S}s"
        (discovery,) = config["scrape_configs"][0]["file_sd_configs"]
        assert discovery["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
        discovery["files"] = [str(folder / "ray" / "prom_metrics_service_discovery.json")]
        discovery["refresh_interval"] = f"{SCRAPE_S}s"
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        self._log = folder / "prometheus.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'prometheus'}",
                    f"--web.listen-address={self._url.removeprefix('http://')}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def wait_for_targets(self) -> None:
        deadline = time.monotonic() + 60
        while not self._up():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self._log.read_text()
            )
            time.sleep(0.2)

    def _up(self) -> bool:
        try:
            return any(float(value) for value in self.last("up"))
        except urllib.error.URLError:
            return False

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Every series that an expression had at any time since Prometheus began."""
        query = urllib.parse.urlencode(
            {"query": expression, "start": self._began, "end": time.time(), "step": SCRAPE_S}
        )
        with urllib.request.urlopen(f"{self._url}/api/v1/query_range?{query}") as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    def last(self, expression: str) -> list[float]:
        """The last value of each."""
        return [float(series["values"][-1][1]) for series in self.series(expression)]

    def settle(self, expected: dict[str, float]) -> None:
        """Wait until the last values are these, at most 30 s, and for two more scrapes."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and any(
            self.last(expression) != [value] for expression, value in expected.items()
        ):
            time.sleep(SCRAPE_S)
        time.sleep(2 * SCRAPE_S)


@pytest.fixture(scope="module")
def prometheus(folder: Path, ray_address: str) -> Iterator[Prometheus]:
    """Prometheus that sees the cluster."""
    found = Prometheus(folder)
    try:
        found.wait_for_targets()
        yield found
    finally:
        found.process.send_signal(signal.SIGTERM)
        found.process.wait(timeout=30)


@pytest.fixture(scope="module")
def seen(folder: Path, ray_address: str, prometheus: Prometheus, tiny_config: Path) -> Prometheus:
    """After a training with anchors, and a search with failed children and a killed evaluator."""
    align = {"start": 0.1, "interval": 2, "challengers": 3, "sequences": 4}
    finish(
        start(
            "train",
            *("--config", str(tiny_config), "--set", f"train.align={json.dumps(align)}"),
            *("--out", str(folder / "aligned"), "--address", ray_address),
        )
    )
    searching = start(
        "search",
        *("--config", str(search_config(folder)), "--out", str(folder / "killed")),
        *("--address", ray_address),
    )
    kill_an_evaluator(folder / "evaluators", searching)
    finish(searching)
    return prometheus


def search_config(folder: Path) -> Path:
    (folder / "code").mkdir()
    (folder / "code" / "own.py").write_text(CODE)
    (folder / "evaluators").mkdir()
    search = {
        "scorer": {"name": "own:score", "folder": str(folder / "evaluators")},
        "searcher": {"name": "random"},
        "objectives": {"value": "max"},
        "candidates": CHILDREN,
        "batch_size": 20,
        "evaluators": 2,
    }
    values = {"user_code": str(folder / "code"), "space": {"layers": 6}, "search": search}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def kill_an_evaluator(pids: Path, searching: subprocess.Popen[str]) -> None:
    """One that has begun to score."""
    deadline = time.monotonic() + 90
    while not (alive := [int(path.name) for path in pids.iterdir()]):
        assert searching.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    psutil.Process(alive[0]).kill()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


PANELS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}".replace(" ", "_"))
    for panel in json.loads((DASHBOARDS / "grafana.json").read_text())["panels"]
    for target in panel.get("targets", [])
]


@pytest.mark.parametrize("expression", PANELS)
def test_every_panel_has_data(expression: str, seen: Prometheus) -> None:
    asked = expression.replace("$run", ".*").replace("$__rate_interval", "10s")
    assert "$" not in asked
    assert seen.series(asked), asked
    for metric in re.findall(METRIC, asked):
        assert seen.series(metric), metric


def test_every_metric_has_a_panel(seen: Prometheus) -> None:
    drawn = {name for value in PANELS for name in re.findall(METRIC, value.values[0])}
    exported = {series["metric"]["__name__"] for series in seen.series(f'{{__name__=~"{METRIC}"}}')}
    assert exported == drawn


def test_the_jobs_have_names(seen: Prometheus, ray_api: str) -> None:
    with urllib.request.urlopen(f"{ray_api}/api/jobs/") as answer:
        names = {job["metadata"].get("job_name") for job in json.load(answer)}
    assert names == {"aligned", "killed"}


def test_a_run_can_be_chosen(seen: Prometheus) -> None:
    names = {series["metric"]["run"] for series in seen.series("ray_magic_nas_stage_done")}
    assert names == {"aligned", "killed"}
    stages = {series["metric"]["stage"] for series in seen.series('{run="killed"}')}
    assert stages == {"search"}


def test_training_shows_what_its_rows_say(seen: Prometheus, folder: Path) -> None:
    last = RunStore(folder / "aligned").rows("train")[-1]
    assert last["anchor_changes"] >= 1 and last["alignment_loss"] > 0
    for metric, key in {
        "training_step": "step",
        "training_loss_nats": "loss_nats",
        "training_alignment_loss": "alignment_loss",
        "training_anchor_changes": "anchor_changes",
        "training_tokens_per_second": "tokens_per_s",
        "stage_done": "step",
    }.items():
        assert seen.last(f'ray_magic_nas_{metric}{{run="aligned"}}') == [
            pytest.approx(last[key])
        ], metric


def test_a_search_shows_what_its_rows_say(seen: Prometheus, folder: Path) -> None:
    rows = RunStore(folder / "killed").rows("score")
    failed = [row for row in rows if row["error"] is not None]
    assert 0 < len(failed) < len(rows) == CHILDREN
    best = max((row for row in rows if row["error"] is None), key=lambda row: row["value"])
    of_search = '{run="killed",stage="search"}'
    values = {
        "candidates_scored_total": CHILDREN - len(failed),
        "candidates_failed_total": len(failed),
        "candidates_in_flight": 0,
        "queue_wait_seconds_count": CHILDREN,
        "evaluator_restarts_total": 1,
        "best_score": best["value"],
    }
    expected = {f"ray_magic_nas_{metric}{of_search}": value for metric, value in values.items()}
    seen.settle(expected)
    for expression, value in expected.items():
        assert seen.last(expression) == [value], expression
    now = {
        series["metric"]["architecture"]: series["values"][-1][1]
        for series in seen.series(f"ray_magic_nas_best_child{of_search}")
    }
    assert [child for child, is_best in now.items() if is_best == "1"] == [best["architecture"]]
