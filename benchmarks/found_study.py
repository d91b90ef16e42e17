"""What the studies of the found model share: their options, their rows, their figures."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.downstream import FOUND
from orchestrator.finetuning.summary import interval
from supernet.errors import InvalidInput


def options_of(doc: str, work: str) -> argparse.Namespace:
    """--quick, --work and --model, of the command line."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="ten steps each: says nothing")
    parser.add_argument("--work", default=work, help="what was done lies here")
    parser.add_argument(
        "--model", default=f"runs/downstream/{FOUND}@best", help="as `magic-nas finetune` takes it"
    )
    return parser.parse_args()


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
