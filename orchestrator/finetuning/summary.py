"""What fine-tuning rows come to: figures of every model and task, with medians and intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from scipy.stats import t

from orchestrator.config import QUESTION_TOKENS
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

SUMMARY = "finetune.json"
ROWS = "finetune"
"""Kind of the rows."""
CHOICES = "finetune_choice"
"""Kind of the rows that name those of a task that a call took for its final figures."""
_WHAT = ("model_digest", "task", "data", "pretrained", "start", "teacher", "pooling")
_SPANS = ("stride", "max_question_tokens", "n_best", "max_answer_tokens", "no_answer_threshold")
_RECIPE = (
    *("max_length", "max_steps", "batch_size", "warmup_fraction", "weight_decay", "clip_norm"),
    *("precision", "distil_weight", "distil_temperature"),
)
_GRID = ("learning_rate", "epochs")
_DEFAULTS = {"pooling": "cls", "max_question_tokens": QUESTION_TOKENS}
"""Of rows from before there was a choice."""


def read_rows(store: RunStore) -> list[dict[str, Any]]:
    """The rows of all fine-tunings, each once: a trial that died after its row may come again.

    Raises:
        InvalidInput: if a part of them is damaged.
    """
    rows = store.rows(ROWS)
    for row in rows:
        known = {"name", "model", "model_digest", "task", "pretrained", "seed", "error", *_GRID}
        if row.get("error", "") is None:
            known |= {"headline", "scores"}
        if missing := sorted(known - set(row)):
            raise InvalidInput(
                f"rows/{ROWS}-*.jsonl in {store.uri} must hold the rows of fine-tunings, but one "
                f"has no {', '.join(missing)}: put a whole copy there, or move it out of the folder"
            )
    return list({row["name"]: row for row in rows}.values())


def summary_of(store: RunStore) -> dict[str, Any]:
    """What the rows of an output folder come to.

    Raises:
        InvalidInput: as `read_rows`.
    """
    return summarise(read_rows(store), store.rows(CHOICES))


def summarise(
    rows: Iterable[Mapping[str, Any]], choices: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Per model and task the figures of the last choice; of a study that is not at its end, of
    the learning rate and epochs with most seeds.

    `interval` is the 95 % t-interval of the mean over seeds.
    """
    groups: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        what = tuple(_value(row, key) for key in (*_WHAT, *_RECIPE, *_SPANS))
        groups.setdefault(what, {})[row["name"]] = row
    chosen = [choice["names"] for choice in choices]
    return {"results": [_figures(group, chosen) for group in groups.values()]}


def _value(row: Mapping[str, Any], key: str) -> Any:
    return row.get(key, _DEFAULTS.get(key))


def _figures(
    group: Mapping[str, Mapping[str, Any]], choices: Sequence[Sequence[str]]
) -> dict[str, Any]:
    def rank(rows: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
        found = [row["headline"] for row in rows if row["error"] is None]
        return len(rows), median(found) if found else -math.inf

    grid: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in group.values():
        grid.setdefault(tuple(row[key] for key in _GRID), []).append(row)
    mine = [names for names in choices if group.keys() >= set(names)]
    rows = [group[name] for name in mine[-1]] if mine else max(grid.values(), key=rank)
    ended = [row for row in rows if row["error"] is None]
    values = [row["headline"] for row in ended]
    first = rows[0]
    spans = _SPANS if "stride" in first else ()
    keys = ("model", *_WHAT, *_RECIPE, *spans, *_GRID, "num_params")
    return {
        **{key: _value(first, key) for key in keys},
        "names": [row["name"] for row in rows],
        "tried": len(grid),
        "seeds": len(rows),
        "diverged": len(rows) - len(ended),
        "headline": median(values) if values else None,
        "stand_in": first.get("stand_in", ""),
        "trivial": next((row["trivial"] for row in ended if "trivial" in row), None),
        "mean": mean(values) if values else None,
        "interval": interval(values),
        "scores": {
            metric: median(row["scores"][metric] for row in ended)
            for metric in (ended[0]["scores"] if ended else {})
        },
    }


def interval(values: Sequence[float]) -> list[float] | None:
    """The 95 % t-interval of a mean; None for fewer than two values, or where all are equal: that
    says nothing of how far others would lie."""
    if len(set(values)) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return [mean(values) - half, mean(values) + half]
