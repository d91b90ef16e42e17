"""What the studies of the found model share: their options, their rows, their figures."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from orchestrator.finetuning.summary import interval, read_rows
from orchestrator.store import RunStore
from supernet.errors import InvalidInput


def options_of(doc: str, work: str) -> argparse.Namespace:
    """--quick and --work, of the command line."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps: says nothing")
    parser.add_argument("--work", default=work, help="what was done lies here")
    options = parser.parse_args()
    options.work = Path(options.work).resolve()
    return options


def write_rows(file: Path, **folders: Path) -> None:
    """The rows of these output folders as a table, with each one's `stage`; no path is in it."""
    rows = [
        {**row, "stage": stage, "scores": json.dumps(row.get("scores"))}
        for stage, folder in folders.items()
        for row in read_rows(RunStore(folder))
    ]
    pd.DataFrame(rows).drop(columns=["model", "start", "teacher"]).to_parquet(file, index=False)


def only(results: Sequence[Mapping[str, Any]], out: Path) -> Mapping[str, Any]:
    """The one result of a study.

    Raises:
        InvalidInput: if the folder holds rows of another model or recipe.
    """
    if len(results) != 1:
        raise InvalidInput(
            f"a study is of one model and one recipe, but {out} holds others' rows, too: name "
            f"another folder with --work"
        )
    return results[0]


def stats(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """Mean, t-interval and values, in the order of seeds."""
    values = [by_seed[seed] for seed in sorted(by_seed)]
    return {
        "mean": sum(values) / len(values) if values else None,
        "interval": interval(values),
        "values": values,
    }
