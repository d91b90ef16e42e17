"""Tries what may fail on hosts of namespaces, and writes the table of docs/reliability.md.

    python -m tests.hosts [--repeats N] [--only REGEX] [--out DIR]

A row per try goes to `benchmarks/results/reliability/<case>.jsonl` at once; what stands there is
not tried again. Needs root and iproute2; each try takes one to four minutes.
"""

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.record import provenance
from tests.hosts.cases import CASES, Lab
from tests.hosts.machines import why_not
from tests.hosts.table import ROWS, read_rows, write_table
from tests.hosts.workload import Prepared


def main() -> int:
    """Run from the command line; 0 where every promise was kept in every try."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="tries of each case")
    parser.add_argument("--only", default="", metavar="REGEX", help='such as "killed.*search"')
    out = Path("/var/tmp/magic-nas-reliability")
    parser.add_argument("--out", type=Path, default=out, metavar="DIR", help="logs; not in /tmp")
    options = parser.parse_args()
    if reason := why_not():
        print(f"no hosts here: {reason}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    out = options.out.resolve()
    with Lab(Prepared(out / "prepared")) as lab:
        rows = [_try(lab, *each, out) for each in _todo(options.repeats, options.only)]
    write_table(options.repeats)
    return 0 if all(row["ok"] for row in rows) else 1


def _stop(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _todo(repeats: int, only: str) -> Iterator[tuple[str, str, int]]:
    """Case, stage and number of the tries that are not done; all cases once, then all again."""
    for number in range(1, repeats + 1):
        for name, case in CASES.items():
            for stage in case.promised:
                done = [row["try"] for row in read_rows(name) if row["stage"] == stage]
                if number not in done and re.search(only, f"{name} {stage}"):
                    yield name, stage, number


def _try(lab: Lab, name: str, stage: str, number: int, out: Path) -> dict[str, Any]:
    case, began = CASES[name], time.monotonic()
    found = lab.try_case(case, stage, out / f"{name}-{stage}-{number}")
    where = provenance(seeds={})
    row = {"case": name, "stage": stage, "try": number, "promised": case.promised[stage], **found}
    row |= {"wall_s": round(time.monotonic() - began, 1)}
    row |= {key: where[key] for key in ("date", "commit", "uncommitted")}
    ROWS.mkdir(parents=True, exist_ok=True)
    with (ROWS / f"{name}.jsonl").open("a") as file:
        print(json.dumps(row), file=file)
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
