"""The table of what may fail, from the rows of its tries."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS
from tests.hosts.cases import CASES
from tests.hosts.ray_hosts import REPOSITORY
from tests.hosts.workload import CANDIDATES, CHECKPOINT_STEPS, LONG_CANDIDATES, LONG_STEPS, STEPS

ROWS = RESULTS / "reliability"
TABLE = REPOSITORY / "docs" / "reliability.md"
HEAD = f"""\
# What may fail

Written by `make test-hosts` (`python -m tests.hosts`) from the rows in
`benchmarks/results/reliability`; do not edit. Three hosts in network namespaces of one machine,
each a Ray node of one CPU with a training worker or an evaluator; the driver runs on the head. A
host that is killed falls silent: its link goes first, then its processes. Training takes {STEPS}
steps ({LONG_STEPS} where a host joins) with a checkpoint every {CHECKPOINT_STEPS}; a search scores
{CANDIDATES} children ({LONG_CANDIDATES}).

*Kept* counts the tries in which the promise held: the command, given again where the case says so,
ended well; no row was lost or doubled; training did no more than the steps since the last
checkpoint again. *Seconds until work goes on* run from the failure to the next trained step or kept
row, the start of a new driver or cluster included; in "the storage full" from when there is room
again; in "a worker of another package version" to the refusal. Median (range) of the tries that
kept the promise. Up to three tries went on side by side, and other work, on two cores: a quiet
machine is faster, above all where a driver or a cluster has to start.

| case | stage | promised | happened | kept | seconds until work goes on | rows lost | steps lost |
|---|---|---|---|---|---|---|---|
"""


def read_rows(case: str) -> list[dict[str, Any]]:
    """All tries of a case."""
    path = ROWS / f"{case}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_table(repeats: int, *, to: Path = TABLE) -> None:
    """Write docs/reliability.md; a case without its tries says so."""
    lines, all_rows = [], []
    for name, case in CASES.items():
        rows = read_rows(name)
        all_rows += rows
        for stage, promised in case.promised.items():
            tries = [row for row in rows if row["stage"] == stage]
            cells = [case.title, stage, promised, *_found(tries, repeats)]
            lines.append(f"| {' | '.join(cells)} |")
    dates = sorted(row["date"][:10] for row in all_rows)
    commits = sorted({row["commit"][:7] for row in all_rows})
    span = f"{dates[0]} to {dates[-1]}" if dates else "no tries yet"
    foot = f"\nTries: {len(all_rows)}, {span}, commits {', '.join(commits) or 'none'}.\n"
    to.write_text(HEAD + "\n".join(lines) + "\n" + foot)


def _found(tries: Sequence[dict[str, Any]], repeats: int) -> list[str]:
    """What happened; kept; seconds; rows; steps."""
    if not tries:
        return ["not tried yet", f"0 of {repeats}", "", "", ""]
    good = [row for row in tries if row["ok"]]
    tried = "" if len(tries) >= repeats else f" ({len(tries)} of {repeats} tried)"
    happened = (good or tries)[-1]["happened"].splitlines()[0][:160].replace("|", "/")
    numbers = [
        _spread([row[key] for row in good]) for key in ("seconds", "rows_lost", "steps_lost")
    ]
    return [happened, f"{len(good)} of {len(tries)}{tried}", *numbers]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    middle = f"{statistics.median(values):g}"
    return middle if min(values) == max(values) else f"{middle} ({min(values):g}–{max(values):g})"
