"""Does a super-net rank children as stand-alone training does, and does MAGIC-AT help?

    python -m benchmarks.ranking [--quick] [--part tune|study|confirm] [--workers N]

Three parts with children and seeds of their own: `tune`, on which settings were chosen; `study`,
all methods at equal steps and at equal time; `confirm`, SPOS against MAGIC-AT once more. Prints a
table and one JSON object; a full run also writes `benchmarks/results/ranking*.{json,parquet,png}`.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ranking_pool import Results, run_tasks
from benchmarks.ranking_summary import plot, summarise, table
from benchmarks.ranking_tasks import DATA, SPACE, Task
from benchmarks.record import RESULTS, write_record
from supernet.data.prepare import prepare
from supernet.settings import DataSettings

BOOKS = "corpus/books_pd/train.txt"
TRUTH = {"steps": 1200, "batch_size": 32, "learning_rate": 3e-3, "warmup_steps": 100}
SUPERNET = {**TRUTH, "steps": 3200}
ALIGN: dict[str, Any] = {"weight": 1.0}
TIME = 0.8
"""Steps of an aligned super-net in the time of one of SPOS: one over what its step costs."""
LONG = 3.0
"""So that a super-net's children come to the loss that they reach on their own."""


@dataclass(frozen=True)
class Method:
    """How a super-net is trained; `share` of the steps, for equal time or for longer."""

    sampler: dict[str, Any]
    align: dict[str, Any] | None = None
    share: float = 1.0


UNIFORM, WALK = {"name": "uniform"}, {"name": "magic_t"}


METHODS = {
    "SPOS": Method(UNIFORM),
    "FairNAS": Method({"name": "fairnas", "accumulate": False}),
    "shuffled walk": Method({"name": "shuffled_walk", "block": SUPERNET["steps"]}),
    "MAGIC-T": Method(WALK),
    "MAGIC-A": Method(UNIFORM, ALIGN),
    "MAGIC-AT": Method(WALK, ALIGN),
    "fair walk": Method({"name": "benchmarks.fair_walk:FairWalk"}),
    "MAGIC-A, equal time": Method(UNIFORM, ALIGN, TIME),
    "MAGIC-AT, equal time": Method(WALK, ALIGN, TIME),
    "SPOS, 9,600 steps": Method(UNIFORM, share=LONG),
    "MAGIC-T, 9,600 steps": Method(WALK, share=LONG),
    "MAGIC-A, 9,600 steps": Method(UNIFORM, ALIGN, LONG),
    "MAGIC-AT, 9,600 steps": Method(WALK, ALIGN, LONG),
}
TRIALS = {
    **{name: METHODS[name] for name in ("SPOS", "MAGIC-T", "fair walk")},
    "MAGIC-T, 3 changes": Method({**WALK, "changes": 3}),
    **{f"MAGIC-A, λ {weight}": Method(UNIFORM, {"weight": weight}) for weight in (1.0, 10.0)},
    **{f"MAGIC-AT, λ {weight}": Method(WALK, {"weight": weight}) for weight in (1.0, 10.0)},
    "FairNAS": METHODS["FairNAS"],
    "FairNAS and alignment": Method(METHODS["FairNAS"].sampler, ALIGN),
    **{name: METHODS[name] for name in ("SPOS, 9,600 steps", "MAGIC-AT, 9,600 steps")},
    "MAGIC-A, averaged teacher": Method(UNIFORM, {**ALIGN, "teacher_decay": 0.99}),
    "MAGIC-AT, averaged teacher": Method(WALK, {**ALIGN, "teacher_decay": 0.99}),
}
HAND_MADE = "-".join(["attention4", "ff256"] * (SPACE.layers // 2))
"""Attention and feed-forward alone, trained like the children of `tune`: it must learn, too."""


@dataclass(frozen=True)
class Part:
    """Children, ground-truth seeds, super-net seeds and methods of one part of the study."""

    name: str
    num_children: int
    truth_seeds: tuple[int, ...]
    supernet_seeds: tuple[int, ...]
    methods: dict[str, Method]
    also: tuple[str, ...] = ()
    """Children that are not drawn."""
    truth: dict[str, Any] = field(default_factory=lambda: TRUTH)
    supernet: dict[str, Any] = field(default_factory=lambda: SUPERNET)

    def children(self, taken: set[str]) -> tuple[str, ...]:
        """Distinct uniform children, none of them taken by another part."""
        space, rng = SPACE.build(), random.Random(f"children:{self.name}")
        found = dict.fromkeys(self.also)
        while len(found) < self.num_children:
            child = str(space.sample(rng))
            if child not in taken:
                found[child] = None
        return tuple(found)

    def tasks(self, children: tuple[str, ...]) -> list[Task]:
        """Stand-alone training of every child, then the super-nets."""
        truth = [
            Task("truth", child, seed, self.truth, (child,))
            for seed in self.truth_seeds
            for child in children
        ]
        return truth + [
            Task(
                "supernet",
                name,
                seed,
                {**self.supernet, "steps": self._steps(method)},
                children,
                sampler=method.sampler,
                align=method.align,
            )
            for seed in self.supernet_seeds
            for name, method in self.methods.items()
        ]

    def _steps(self, method: Method) -> int:
        return int(round(method.share * self.supernet["steps"]))


ONLY = ("SPOS", "MAGIC-AT")
PARTS = [
    Part("tune", 24, (100, 101), (100, 101), TRIALS, also=(HAND_MADE,)),
    Part("study", 60, (0, 1), (20, 21, 22), METHODS),
    Part("confirm", 60, (10, 11), (30, 31, 32, 33, 34, 35), {name: METHODS[name] for name in ONLY}),
]
QUICK = Part(
    "quick",
    10,
    (0, 1),
    (0, 1),
    {name: METHODS[name] for name in ONLY},
    truth={**TRUTH, "steps": 60},
    supernet={**SUPERNET, "steps": 120},
)


def main() -> int:
    """Run what has no result yet, then report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny study, nothing kept")
    parser.add_argument("--part", choices=[part.name for part in PARTS], action="append")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("runs/ranking"))
    options = parser.parse_args()
    if not os.environ.get("MAGIC_NAS_DATA"):
        print("ranking: set MAGIC_NAS_DATA to the folder that holds " + BOOKS, file=sys.stderr)
        return 2
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            report = _study([QUICK], Path(folder), options.workers, keep=False)
    else:
        parts = [part for part in PARTS if not options.part or part.name in options.part]
        report = _study(parts, options.work, options.workers, keep=True)
    print(table(report))
    print(json.dumps(report))
    return 0


def _study(parts: list[Part], work: Path, workers: int, *, keep: bool) -> dict[str, Any]:
    data = _prepared(work)
    results = Results(work, RESULTS / "ranking.parquet" if keep else work / "none")
    tasks: dict[str, list[Task]] = {}
    taken: set[str] = set()
    for part in PARTS if keep else parts:
        children = part.children(taken)
        taken |= set(children)
        tasks[part.name] = part.tasks(children)
    try:
        for part in parts:
            run_tasks(tasks[part.name], results, data, workers=workers)
    finally:
        results.write([task for found in tasks.values() for task in found])
    report = {
        name: summarise(found, results, data)
        for name, found in tasks.items()
        if all(task in results for task in found)
    }
    if keep:
        for name in report:
            plot(report[name], RESULTS / f"ranking_{name}.png")
        seeds = {part.name: list(part.truth_seeds + part.supernet_seeds) for part in PARTS}
        write_record("ranking", report, seeds=seeds)
    return report


def _prepared(work: Path) -> Path:
    digest = hashlib.sha256(json.dumps([BOOKS, DATA]).encode()).hexdigest()
    data = work / f"data-{digest[:12]}"
    if not (data / "summary.json").exists():
        source = Path(os.environ["MAGIC_NAS_DATA"]) / BOOKS
        work.mkdir(parents=True, exist_ok=True)
        settings = DataSettings(source=str(source), **DATA)
        prepare(settings, data, seed=0, on_progress=lambda *_: None)
    return data


if __name__ == "__main__":
    sys.exit(main())
