"""What every benchmark says of where its numbers come from, and where it keeps them."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from orchestrator.runinfo import library_versions

RESULTS = Path(__file__).parent / "results"
_CODE = ("--", ":/", ":(top,exclude)benchmarks/results")


def provenance(*, seeds: Mapping[str, int | Sequence[int]]) -> dict[str, Any]:
    """Date, commit, versions, machine and seeds; no host name and no path."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain", "--untracked-files=no", *_CODE)),
        "versions": library_versions(),
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "platform": platform.system(),
        },
        "seeds": seeds,
    }


def write_record(
    name: str,
    values: dict[str, Any],
    *,
    seeds: Mapping[str, int | Sequence[int]] | None = None,
    origin: Mapping[str, Any] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Write `<name>.json` into benchmarks/results.

    Args:
        origin: the `provenance` of when it was begun, for one that takes hours; none: of now.
    """
    folder.mkdir(exist_ok=True)
    begun = provenance(seeds=seeds or {}) if origin is None else origin
    record = {"benchmark": name, **begun, "results": values}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _git(*arguments: str) -> str | None:
    done = subprocess.run(
        ["git", *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
