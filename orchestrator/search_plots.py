"""The plots of a search: frames in, a PNG's bytes out, as in `plots.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import FuncFormatter, MaxNLocator

from orchestrator.leaderboard import human, pareto_front
from orchestrator.limits import Limits
from orchestrator.objectives import Objectives
from orchestrator.plots import (
    _STYLE,
    BLUE,
    ORANGE,
    RED,
    SKY,
    STYLES,
    _axes,
    _legend_below,
    _name_axes,
    _png,
)

METRICS = {
    "val_loss_nats": "valid loss, inherited weights (nats)",
    "masked_accuracy": "masked accuracy, inherited weights",
    "num_params": "parameters",
    "flops": "FLOPs",
    "latency_ms": "predicted latency (ms)",
    "finetuned_score": "score after a short fine-tuning",
    "finetune_s": "short fine-tuning (s)",
}


def title(metric: str) -> str:
    """What axes and tables call a metric."""
    return METRICS.get(metric, metric)


def front(board: pd.DataFrame, objectives: Objectives, limits: Limits) -> bytes:
    """Every scored child by the first objective against each other one, with the Pareto front."""
    best, members = board.iloc[0], pareto_front(board, objectives)
    first, *others = objectives.names
    with rc_context(_STYLE):
        figure, axes = _axes(height=4.6 if len(others) == 1 else 4.2 * len(others))
        axes.remove()
        panels = np.atleast_1d(figure.subplots(len(others), 1))
        for panel, other in zip(panels, others, strict=True):
            panel.scatter(board[other], board[first], s=16, color=SKY, alpha=0.7, label="children")
            panel.plot(
                members[other],
                members[first],
                linestyle="-" if len(others) == 1 else "",
                drawstyle="steps-post",
                marker="o",
                markersize=5,
                color=RED,
                label="Pareto front",
            )
            panel.plot(
                [best[other]],
                [best[first]],
                "*",
                markersize=14,
                color=ORANGE,
                markeredgecolor="black",
                markeredgewidth=0.8,
                label=f"best {title(first).split(',')[0]}",
            )
            _limit_lines(panel, limits, other)
            panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value)))
            panel.xaxis.set_major_locator(MaxNLocator(6))
            _name_axes(panel, title(other), title(first))
        _legend_below(figure, panels[0])
        return _png(figure)


def best_so_far(values: Sequence[float | None], metric: str, *, mode: str) -> bytes:
    """The best value after each candidate, in the order of scoring; None: it failed."""
    found = np.array([np.nan if value is None else value for value in values], dtype=float)
    numbers = np.arange(1, len(found) + 1)
    accumulate = np.fmin.accumulate if mode == "min" else np.fmax.accumulate
    with rc_context(_STYLE):
        figure, axes = _axes()
        axes.scatter(
            numbers, found, s=12, color=SKY, alpha=0.7, edgecolors="none", label="candidate"
        )
        best = accumulate(found)
        axes.step(numbers, best, where="post", color=BLUE, linewidth=2, label="best so far")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        _name_axes(axes, "candidates scored", title(metric))
        _legend_below(figure, axes)
        return _png(figure)


def hypervolume(volumes: Sequence[float]) -> bytes:
    """The hypervolume of the Pareto front after each candidate."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        axes.step(np.arange(1, len(volumes) + 1), volumes, where="post", color=BLUE, linewidth=2)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylim(0, 1)
        _name_axes(axes, "candidates scored", "hypervolume (share of the box)")
        return _png(figure)


def latency(children: Mapping[str, Sequence[Mapping[str, Any]]]) -> bytes:
    """Measured against predicted latency of whole children, by what they are."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        shown = zip(children.items(), ("o", "*"), (BLUE, ORANGE), strict=False)
        for (name, found), marker, colour in shown:
            axes.plot(
                [child["predicted_ms"] for child in found],
                [child["measured_ms"] for child in found],
                marker,
                color=colour,
                markersize=6 if marker == "o" else 11,
                markeredgecolor="black",
                markeredgewidth=0.5,
                label=name,
            )
        axes.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=1, label="equal")
        every = [child[key] for found in children.values() for child in found for key in _BOTH]
        margin = 0.05 * (max(every) - min(every)) or 0.1 * max(every)
        axes.set(
            xlim=(min(every) - margin, max(every) + margin),
            ylim=(min(every) - margin, max(every) + margin),
        )
        _name_axes(axes, "predicted latency (ms)", "measured latency (ms)")
        _legend_below(figure, axes)
        return _png(figure)


_BOTH = ("predicted_ms", "measured_ms")


def _limit_lines(axes: Any, limits: Limits, metric: str) -> None:
    bounds = [bound for bound in limits.bounds if bound.metric == metric]
    for bound, style in zip(bounds, STYLES[1:], strict=False):
        label = f"limit {bound.symbol} {human(bound.value)}"
        axes.axvline(bound.value, color="black", linestyle=style, label=label)
