"""The leaderboard: every scored child once, best first, as a pure function of the score rows.

Kept as `leaderboard.parquet` in the run's folder; the report, retraining and users read it.
"""

import io
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

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
_BOOKKEEPING = ("error", "batch_id")


def build_leaderboard(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """One line per architecture, best first; the first score of an architecture counts.

    Rows with an error or without a score are dropped. Metrics beyond the known ones (a latency,
    say) keep their own columns, after the known ones.
    """
    frame = pd.DataFrame([row for row in rows if _is_scored(row)])
    if not frame.empty:
        frame = frame.drop_duplicates("architecture").sort_values(
            ["val_loss_nats", "architecture"], kind="stable", ignore_index=True
        )
    frame = frame.drop(columns=[name for name in _BOOKKEEPING if name in frame])
    frame["rank"] = np.arange(1, len(frame) + 1)
    extra = [str(name) for name in frame.columns if name not in COLUMNS]
    return _typed(frame.reindex(columns=[*COLUMNS, *extra]))


def write_leaderboard(store: RunStore) -> None:
    """Write `leaderboard.parquet` from the run's score rows."""
    buffer = io.BytesIO()
    build_leaderboard(store.rows("score")).to_parquet(buffer, index=False)
    store.write_bytes(FILE, buffer.getvalue())


def load_leaderboard(run: str | Path) -> pd.DataFrame:
    """The leaderboard of a run's folder (a path or a URI), best first.

    Raises:
        InvalidInput: if the run has none yet.
    """
    store = RunStore(run)
    if not store.exists(FILE):
        raise InvalidInput(
            f"a run's leaderboard is its {FILE}, but {store.uri} has none; `magic-nas search` "
            f"writes it, or check the run's folder"
        )
    try:
        return pd.read_parquet(io.BytesIO(store.read_bytes(FILE)))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"{FILE} in the run {store.uri} is no Parquet file: {error}; `magic-nas search` "
            f"writes it again from the rows"
        ) from error


def pareto_front(
    frame: pd.DataFrame, cost: str = "num_params", score: str = "val_loss_nats"
) -> pd.DataFrame:
    """The lines that no other line beats, cheapest first; less is better in both columns.

    A line is beaten by one that is at least as good in both and better in one, so equal lines
    stay together.
    """
    ordered = frame.dropna(subset=[cost, score]).sort_values([cost, score], kind="stable")
    best_of_cost = ordered.groupby(cost)[score].transform("min")
    scores = ordered[score].to_numpy(dtype=float)
    best_so_far = np.minimum.accumulate(scores) if len(scores) else scores
    # Where a cost begins, the best score of all cheaper lines; later lines of it share that.
    first = ~ordered[cost].duplicated().to_numpy()
    begins = np.maximum.accumulate(np.where(first, np.arange(len(scores)), 0))
    cheaper = np.concatenate([[np.inf], best_so_far])[begins]
    keep = (scores == best_of_cost.to_numpy(dtype=float)) & (scores < cheaper)
    front: pd.DataFrame = ordered.loc[keep]
    return front


def format_leaderboard(frame: pd.DataFrame, top: int = 10, *, width: int = 100) -> str:
    """The first `top` lines as a table for the terminal; long architectures wrap at a layer."""
    if frame.empty:
        return "no child has been scored yet"
    head = f"{'rank':>4}  {'val loss (nats)':>15}  {'accuracy':>8}  {'params':>9}  {'flops':>9}  "
    lines = [head + "architecture"]
    for row in frame.head(top).to_dict("records"):
        figures = (
            f"{row['rank']:>4}  {row['val_loss_nats']:>15.4f}  {row['masked_accuracy']:>8.1%}  "
            f"{human(row['num_params']):>9}  {human(row['flops']):>9}  "
        )
        first, *others = wrap_architecture(str(row["architecture"]), width - len(head))
        lines += [figures + first, *(" " * len(head) + part for part in others)]
    if len(frame) > top:
        lines.append(f"(and {len(frame) - top:,} more)")
    return "\n".join(lines)


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


def _is_scored(row: dict[str, Any]) -> bool:
    return row.get("error") is None and row.get("val_loss_nats") is not None


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """Known columns in their types; whole numbers that lack a value become nullable ones."""
    types = {
        name: "Int64" if kind == "int64" and frame[name].isna().any() else kind
        for name, kind in COLUMNS.items()
    }
    return frame.astype(types)
