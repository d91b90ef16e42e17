"""How a search scales with hosts: children per second on 1, 2 and 3 hosts, by a scorer that sleeps.

    python -m benchmarks.scaling [--quick]

Hosts are network namespaces of this machine (root and iproute2 needed), each a real Ray node with
so many CPUs in name, an evaluator on each; the scorer sleeps, so that this machine's cores are not
the limit. Searches run from the command line; hosts join between them. The rate counts the children
kept after the first batch over the time from then to the last.

`linear_2` and `linear_3` are the rates over 2 and 3 times that of one host; `ideal` is the rate
over what the evaluators could do if nothing but the scorer took time. Medians over the turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.record import write_record
from orchestrator.store import RunStore
from tests.hosts.machines import Group, why_not
from tests.hosts.ray_hosts import RayHosts

HOSTS, EVALUATORS, SLEEP_S = 3, 4, 0.5
SECONDS = 40
"""That a search takes if nothing but the scorer takes time."""
SEED = 0
CODE = """
import time

def sleeps(architecture, *, seconds):
    time.sleep(seconds)
    return {"value": float(len(str(architecture)))}
"""


def search(cluster: RayHosts, folder: Path, *, hosts: int, seconds: float, log: Path) -> float:
    """Children per second of a search by the command line."""
    run = folder / "run"
    subprocess.run(["rm", "-rf", run], check=True)
    settings = {
        "seed": SEED,
        "user_code": str(folder / "code"),
        "search": {
            "scorer": {"name": "own:sleeps", "seconds": SLEEP_S},
            "objectives": {"value": "max"},
            "searcher": {"name": "random"},
            "candidates": int(hosts * EVALUATORS * seconds / SLEEP_S),
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    with log.open("a") as file:
        words = ["--config", folder / "config.yaml", "--out", run]
        code = cluster.magic_nas("search", *words, log=file).wait()
    assert code == 0, log.read_text()
    parts = RunStore(run).local_path("rows").glob("score-*")
    kept = sorted((part.stat().st_mtime, len(part.read_text().splitlines())) for part in parts)
    return sum(count for _, count in kept[1:]) / (kept[-1][0] - kept[0][0])


def measure(*, quick: bool) -> dict[str, Any]:
    """All turns on one host, then on two, then on three."""
    turns, seconds = (1, 10.0) if quick else (3, float(SECONDS))
    rates: dict[int, list[float]] = {}
    with Group() as group, tempfile.TemporaryDirectory(dir="/var/tmp") as logs:
        (group.storage / "code").mkdir()
        (group.storage / "code" / "own.py").write_text(CODE)
        cluster = RayHosts(group, [EVALUATORS] * HOSTS, log=Path(logs) / "ray.log")
        for hosts in range(1, HOSTS + 1):
            cluster.start([hosts])
            log = Path(logs) / "search.log"
            rates[hosts] = [
                search(cluster, group.storage, hosts=hosts, seconds=seconds, log=log)
                for _ in range(turns)
            ]
            print(f"{hosts} hosts: {', '.join(f'{r:.2f}' for r in rates[hosts])} /s", flush=True)
    medians = {hosts: statistics.median(found) for hosts, found in rates.items()}
    return {
        "children_per_s": medians,
        **{f"linear_{n}": medians[n] / (n * medians[1]) for n in range(2, HOSTS + 1)},
        "ideal": {n: medians[n] * SLEEP_S / (n * EVALUATORS) for n in medians},
        "evaluators_per_host": EVALUATORS,
        "sleep_s": SLEEP_S,
        "turns": rates,
        "quick": quick,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter searches, one turn")
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(f"no hosts here: {reason}")
    results = measure(quick=options.quick)
    if not results["quick"]:
        write_record("scaling", results, seeds={"searcher": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
