"""What fine-tuning rows come to: a table of tasks with medians and intervals, by model."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t

SUMMARY = "finetune.json"
_RECIPE = ("model_digest", "task", "pretrained", "start", "teacher", "max_length", "max_steps")
_GRID = ("learning_rate", "epochs")
_POOLING = "cls"
"""Of rows from before there was a choice."""


def summarise(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Per model and task: the recipe with most seeds (the chosen one) and its figures.

    `interval` is the 95 % t-interval of the mean over seeds.
    """
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for row in rows:
        what = (*(row[key] for key in _RECIPE), row.get("pooling", _POOLING))
        groups.setdefault(what, {}).setdefault(tuple(row[key] for key in _GRID), []).append(row)
    return {"results": [_figures(list(grid.values())) for grid in groups.values()]}


def _figures(grid: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    def rank(rows: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
        found = [row["headline"] for row in rows if row["error"] is None]
        return len(rows), median(found) if found else -math.inf

    rows = max(grid, key=rank)
    ended = [row for row in rows if row["error"] is None]
    values = [row["headline"] for row in ended]
    first = rows[0]
    return {
        **{key: first[key] for key in ("model", *_RECIPE, *_GRID, "num_params")},
        "pooling": first.get("pooling", _POOLING),
        "tried": len(grid),
        "seeds": len(rows),
        "diverged": len(rows) - len(ended),
        "headline": median(values) if values else None,
        "mean": mean(values) if values else None,
        "interval": interval(values),
        "scores": {
            metric: median(row["scores"][metric] for row in ended)
            for metric in (ended[0]["scores"] if ended else {})
        },
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % t-interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table that the command prints; scores x 100, as the papers give them."""
    lines = [f"{'model':<28} {'task':<7} {'median':>7} {'mean ± 95 %':>15} {'seeds':>6}  metrics"]
    for found in summary["results"]:
        name = found["model"] if found["pretrained"] else f"{found['model']} (random weights)"
        name += "" if found["pooling"] == "cls" else f" ({found['pooling']})"
        if found["headline"] is None:
            lines.append(f"{name:<28} {found['task']:<7} diverged with every seed")
            continue
        half = (found["interval"][1] - found["mean"]) * 100 if found["interval"] else None
        spread = f"{found['mean'] * 100:.1f}" + (f" ± {half:.1f}" if half is not None else "")
        metrics = ", ".join(
            f"{name} {value * 100:.1f}"
            for name, value in found["scores"].items()
            if name != "null_odds"
        )
        lines.append(
            f"{name:<28} {found['task']:<7} {found['headline'] * 100:7.1f} {spread:>15} "
            f"{found['seeds']:>6}  {metrics} (lr {found['learning_rate']:g}, "
            f"{found['epochs']:g} epochs)"
        )
    return "\n".join(lines)
