"""What searchers find on NAS-Bench-Macro, through the public API for a user's own score.

    python -m benchmarks.searchers [--quick]

The table holds the accuracy on CIFAR-10 of all 3**8 architectures, trained three times each (Su et
al., "Prioritized Architecture Sampling with Monto-Carlo Tree Search", CVPR 2021); a child's score
is its mean. Evolution, Optuna's TPE and random search, at their defaults, propose 200 children each
from 30 seeds, one after the other. Regret: how far the best child found stays behind the best of
the table, in points of accuracy. Intervals resample seeds. One search by each is done on a Ray
cluster too and has to score the same children (`ray_agrees`).
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from benchmarks.record import RESULTS, write_record
from evaluators.rank_statistics import bootstrap_interval
from orchestrator import search
from orchestrator.config import Config, parse
from orchestrator.store import RunStore
from supernet.space import Architecture

TABLE = "nas_tabular/nas_bench_macro/nas-bench-macro_cifar10.json"
CHOICES = {
    "identity": {"kind": "identity"},
    "kernel3": {"kind": "separable_conv", "kernel_size": 3},
    "kernel5": {"kind": "separable_conv", "kernel_size": 5},
}
"""The table's choices 0, 1 and 2 by their order here; only the names count."""
SEARCHERS = {"random": "random", "evolution": "evolution", "TPE": "optuna"}
Floats = npt.NDArray[np.float64]


def read_table(path: Path) -> dict[str, float]:
    """Mean accuracy in percent by architecture, in our text form."""
    names = list(CHOICES)
    return {
        str(Architecture(tuple(names[int(digit)] for digit in key))): float(row["mean_acc"])
        for key, row in json.loads(path.read_text()).items()
    }


def accuracy(architecture: Architecture, *, table: Mapping[str, float]) -> dict[str, float]:
    """A user's own score."""
    return {"accuracy": table[str(architecture)]}


def _config(searcher: str, *, layers: int, evaluations: int, seed: int) -> Config:
    settings = {
        "searcher": {"name": searcher},
        "candidates": evaluations,
        "batch_size": 1,
        "in_flight": 1,
        "objectives": {"accuracy": "max"},
    }
    space = {"layers": layers, "candidates": CHOICES}
    return parse({"seed": seed, "space": space, "search": settings})


def scored(
    table: Mapping[str, float], searcher: str, *, evaluations: int, seed: int, local: bool = True
) -> list[float]:
    """The accuracies of a search's children, in the order of scoring."""
    layers = len(Architecture.parse(next(iter(table))))
    config = _config(searcher, layers=layers, evaluations=evaluations, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        scorer = partial(accuracy, table=table)
        run = search(Path(folder) / "run", config=config, scorer=scorer, local=local)
        return [row["accuracy"] for row in RunStore(run.store.uri).rows("score")]


def regrets(table: Mapping[str, float], accuracies: Sequence[float]) -> Floats:
    """The regret after each evaluation, in points of accuracy."""
    best: Floats = max(table.values()) - np.maximum.accumulate(np.asarray(accuracies, dtype=float))
    return best


def summarise(regrets_SE: Mapping[str, Floats]) -> dict[str, Any]:
    """Final regret by searcher, and its difference to random search's, paired by seed."""

    def interval(values_S: Floats) -> dict[str, float]:
        return asdict(bootstrap_interval(lambda drawn: float(np.mean(drawn)), [values_S]))

    last = {name: curves[:, -1] for name, curves in regrets_SE.items()}
    return {
        "regret": {name: interval(values) for name, values in last.items()},
        "over_random": {
            name: interval(values - last["random"])
            for name, values in last.items()
            if name != "random"
        },
    }


def plot(regrets_SE: Mapping[str, Floats], path: Path) -> None:
    """Median regret and quartiles against evaluations."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    for (name, curves), style, colour in zip(
        regrets_SE.items(), ("--", "-", "-."), ("#6B6B6B", "#0072B2", "#D55E00"), strict=True
    ):
        steps = np.arange(1, curves.shape[1] + 1)
        low, median, high = np.percentile(curves, [25, 50, 75], axis=0)
        axes.plot(steps, median, style, color=colour, label=name)
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel="evaluations", ylabel="regret (points of accuracy), median and quartiles")
    axes.set_ylim(0, 2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 seeds, 60 evaluations, no Ray")
    quick = parser.parse_args().quick
    evaluations, seeds = (60, 3) if quick else (200, 30)
    table = read_table(Path(os.environ["MAGIC_NAS_DATA"]) / TABLE)
    regrets_SE = {
        name: np.stack(
            [
                regrets(table, scored(table, kind, evaluations=evaluations, seed=seed))
                for seed in range(seeds)
            ]
        )
        for name, kind in SEARCHERS.items()
    }
    found = summarise(regrets_SE)
    for name, regret in found["regret"].items():
        over = found["over_random"].get(name)
        line = f"{name:<10} regret {_text(regret)}"
        print(line + (f"   over random {_text(over)}" if over else ""))
    agrees = None
    if not quick:
        agrees = all(
            scored(table, kind, evaluations=evaluations, seed=0, local=False)
            == scored(table, kind, evaluations=evaluations, seed=0)
            for kind in SEARCHERS.values()
        )
    results = {
        **found,
        "ray_agrees": agrees,
        "evaluations": evaluations,
        "seeds": seeds,
        "quick": quick,
    }
    if not quick:
        plot(regrets_SE, RESULTS / "searchers.png")
        write_record("searchers", results, seeds={"searcher": list(range(seeds))})
    print(json.dumps(results))


def _text(interval: Mapping[str, float]) -> str:
    return f"{interval['estimate']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


if __name__ == "__main__":
    main()
