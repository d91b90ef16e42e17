"""Plots of a run's interference, from its summary alone: functions to PNG bytes, no files.

A colour and a line style per checkpoint, the same in every plot; bars are 95 % intervals.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.plots import (
    _STYLE,
    CYCLE,
    STYLES,
    _axes,
    _legend_below,
    _name_axes,
    _png,
    shorten,
)

COSINE = "cosine of gradients, mean"
_MARKERS = "osD^v<>P"

Summary = Mapping[str, Any]
Lines = Sequence[Mapping[str, Any]]


def draw_interference(summary: Summary) -> dict[str, bytes]:
    """PNG by name; nothing where the run's interference has not been measured."""
    if not summary.get("steps"):
        return {}
    return {
        "interference_distance": over_distance(summary),
        "interference_similarity": over_similarity(summary),
        "interference_kind_and_depth": by_kind_and_depth(summary),
    }


def over_distance(summary: Summary) -> bytes:
    """Finding (1): mean cosine against the number of layers in which two children differ."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        for number, step in enumerate(summary["steps"]):
            _line(axes, step["by_distance"], "distance", number, label=step["checkpoint"])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _name_axes(axes, "layers in which the two children differ", COSINE)
        _legend_below(figure, axes)
        return _png(figure)


def over_similarity(summary: Summary) -> bytes:
    """Finding (2): mean cosine in bins of how alike inputs (left) and outputs (right) are."""
    with rc_context(_STYLE):
        figure, (left, right) = _two_panels()
        for number, step in enumerate(summary["steps"]):
            for axes, side in ((left, "input"), (right, "output")):
                name = f"{side}_cosine"
                _line(axes, step[f"by_{name}"], name, number, label=step["checkpoint"])
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(4))
        _name_axes(left, "cosine of inputs", COSINE)
        _name_axes(right, "cosine of outputs", "")
        _legend_below(figure, left)
        return _png(figure)


def by_kind_and_depth(summary: Summary) -> bytes:
    """Mean cosine by the shared operator's kind (left) and by its layer (right)."""
    with rc_context(_STYLE):
        figure, (left, right) = _two_panels()
        kinds = sorted({line["kind"] for step in summary["steps"] for line in step["by_kind"]})
        for number, step in enumerate(summary["steps"]):
            shift = 0.12 * (number - (len(summary["steps"]) - 1) / 2)
            placed = [{**line, "x": kinds.index(line["kind"]) + shift} for line in step["by_kind"]]
            _line(left, placed, "x", number, label=step["checkpoint"], joined=False)
            _line(right, step["by_layer"], "layer", number, label=step["checkpoint"])
        left.set_xticks(range(len(kinds)), [shorten(kind).replace("_", "\n") for kind in kinds])
        left.set_xlim(-0.5, len(kinds) - 0.5)
        right.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _name_axes(left, "kind of the shared operator", COSINE)
        _name_axes(right, "its layer (0: next to the stem)", "")
        _legend_below(figure, left)
        return _png(figure)


def _two_panels() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    return figure, figure.subplots(1, 2, sharey=True)


def _line(
    axes: Any, lines: Lines, column: str, number: int, *, label: str, joined: bool = True
) -> None:
    """Means with their intervals; a line whose mean is not determined is left out."""
    known = [line for line in lines if line["value"] is not None]
    # A percentile interval may lie beside the mean, and a bar cannot be negative.
    axes.errorbar(
        [line[column] for line in known],
        [line["value"] for line in known],
        yerr=[
            [max(0.0, line["value"] - line["low"]) for line in known],
            [max(0.0, line["high"] - line["value"]) for line in known],
        ],
        color=CYCLE[number % len(CYCLE)],
        linestyle=STYLES[number % len(STYLES)] if joined else "none",
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=5,
        capsize=3,
        label=label,
    )
