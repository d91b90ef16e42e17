"""The leaderboard: every scored child once, best first, as a pure function of the score rows.

Kept as `leaderboard.parquet` in the run's folder; the report, retraining and users read it.
"""

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.objectives import DEFAULT_OBJECTIVES, Objectives, undominated
from orchestrator.store import RunStore
from supernet.errors import InvalidInput
from supernet.space import SEPARATOR

FILE = "leaderboard.parquet"
COLUMNS = {
    "architecture": "str",
    "rank": "int64",
    "val_loss_nats": "float64",
    "masked_accuracy": "float64",
    "num_params": "int64",
    "flops": "int64",
    "wall_s": "float64",
    "supernet_version": "str",
}
NO_METRICS = ("architecture", "rank", "wall_s", "supernet_version")
METRICS_SHOWN = 6
"""Columns of the terminal's table."""
_BOOKKEEPING = ("error", "batch_id")


_SHOWN: dict[str, tuple[str, Callable[[Any], str]]] = {
    "val_loss_nats": ("val loss (nats)", "{:.4f}".format),
    "masked_accuracy": ("accuracy", "{:.1%}".format),
    "num_params": ("params", lambda value: human(value)),
    "flops": ("flops", lambda value: human(value)),
    "latency_ms": ("latency (ms)", "{:.3g}".format),
    "finetuned_score": ("fine-tuned score", "{:.4f}".format),
    "finetune_s": ("tuning (s)", "{:.3g}".format),
}
"""What the terminal calls a metric, and how it writes it."""


def build_leaderboard(
    rows: Iterable[Mapping[str, Any]], objectives: Objectives = DEFAULT_OBJECTIVES
) -> pd.DataFrame:
    """One line per architecture, best by the first objective first; its first score counts.

    Rows with an error or without a score are dropped. Metrics beyond the known ones (a latency,
    say) keep their own columns, after the known ones.
    """
    (metric, mode), *_ = objectives.modes
    scored = [r for r in rows if r.get("error") is None and r.get(metric) is not None]
    frame = pd.DataFrame(scored)
    if not frame.empty:
        frame = frame.drop_duplicates("architecture").sort_values(
            [metric, "architecture"], ascending=[mode == "min", True], kind="stable"
        )
        frame = frame.reset_index(drop=True)
    frame = frame.drop(columns=[name for name in _BOOKKEEPING if name in frame])
    frame["rank"] = np.arange(1, len(frame) + 1)
    known = [name for name in COLUMNS if frame.empty or name in frame]
    extra = [str(name) for name in frame.columns if name not in COLUMNS]
    return _typed(frame.reindex(columns=[*known, *extra]))


def write_leaderboard(store: RunStore, objectives: Objectives = DEFAULT_OBJECTIVES) -> None:
    """Write `leaderboard.parquet` from the run's score rows."""
    buffer = io.BytesIO()
    build_leaderboard(store.rows("score"), objectives).to_parquet(buffer, index=False)
    store.write_bytes(FILE, buffer.getvalue())


def load_leaderboard(run: str | Path) -> pd.DataFrame:
    """The leaderboard of a run's folder (a path or a URI), best first.

    Raises:
        InvalidInput: if the run has none yet, or it is damaged.
    """
    store = RunStore(run)
    if not store.exists(FILE):
        raise InvalidInput(
            f"a run's leaderboard is its {FILE}, but {store.uri} has none; `magic-nas search` "
            f"writes it, or check the run's folder"
        )
    try:
        frame = pd.read_parquet(io.BytesIO(store.read_bytes(FILE)))
        if missing := {"rank", "architecture"} - set(frame.columns):
            raise ValueError(f"it has no column {' and '.join(sorted(missing))}")
        return frame
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{FILE} in the run {store.uri} is no leaderboard: {error}; `magic-nas search` "
            f"writes it again from the rows"
        ) from error


def pareto_front(frame: pd.DataFrame, objectives: Objectives) -> pd.DataFrame:
    """The lines that no other line beats, best by the last objective first; equal lines stay."""
    *others, last = objectives.names
    ordered = frame.dropna(subset=objectives.names).sort_values(
        [last, *others],
        ascending=[dict(objectives.modes)[name] == "min" for name in (last, *others)],
        kind="stable",
    )
    signs_M = np.array([1.0 if mode == "min" else -1.0 for _, mode in objectives.modes])
    losses_NM = ordered[objectives.names].to_numpy(dtype=float) * signs_M
    front: pd.DataFrame = ordered.loc[undominated(losses_NM)]
    return front


def format_leaderboard(frame: pd.DataFrame, top: int = 10, *, width: int = 100) -> str:
    """The first `top` lines as a table for the terminal; long architectures wrap at a layer."""
    if frame.empty:
        return "no child has been scored yet"
    metrics = [name for name in frame.columns if name not in NO_METRICS][:METRICS_SHOWN]
    widths = [max(len(metric_title(name)), 9) for name in metrics]
    head = f"{'rank':>4}  "
    for name, size in zip(metrics, widths, strict=True):
        head += f"{metric_title(name):>{size}}  "
    lines = [head + "architecture"]
    for row in frame.head(top).to_dict("records"):
        figures = f"{row['rank']:>4}  "
        for name, size in zip(metrics, widths, strict=True):
            figures += f"{write_metric(name, row[name]):>{size}}  "
        first, *others = wrap_architecture(str(row["architecture"]), width - len(head))
        lines += [figures + first, *(" " * len(head) + part for part in others)]
    if len(frame) > top:
        lines.append(f"(and {len(frame) - top:,} more)")
    return "\n".join(lines)


def metric_title(metric: str) -> str:
    """What tables call a metric."""
    return _SHOWN[metric][0] if metric in _SHOWN else metric


def write_metric(metric: str, value: Any) -> str:
    """A value as tables write it."""
    if value is None or pd.isna(value):
        return "–"
    return _SHOWN[metric][1](value) if metric in _SHOWN else f"{value:.4g}"


def wrap_architecture(architecture: str, width: int) -> list[str]:
    """The text form in lines of at most `width`, broken after a separator where one is in reach."""
    lines = [""]
    *names, last = architecture.split(SEPARATOR)
    for part in (*(name + SEPARATOR for name in names), last):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [piece for line in lines for piece in textwrap.wrap(line, width) or [""]]


def human(number: float | None) -> str:
    """A count in at most four digits: 950, 1.25 M, 31.2 G."""
    if number is None or pd.isna(number):
        return "–"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.4g}"


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Known columns in their types; whole numbers that lack a value become nullable ones."""
    types = {
        name: "Int64" if kind == "int64" and frame[name].isna().any() else kind
        for name, kind in COLUMNS.items()
        if name in frame
    }
    return frame.astype(types)
