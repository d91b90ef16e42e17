"""The plots of `magic-nas rank`: frames and summaries in, a PNG's bytes out, as in `plots.py`."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from orchestrator.plots import _STYLE, BLUE, GREY, ORANGE, _axes, _name_axes, _png, shorten
from orchestrator.ranking_summary import TRUTH, seed_columns, taus


def ranking_scores(frame: pd.DataFrame) -> bytes:
    """Each child's stand-alone loss, with the span of its seeds, against its inherited loss."""
    whole = frame[frame["error"].isna()]
    mean, seeds = whole[TRUTH], seed_columns(whole)
    with rc_context(_STYLE):
        figure, axes = _axes()
        axes.errorbar(
            whole["inherited_loss_nats"],
            mean,
            yerr=[mean - seeds.min(axis=1), seeds.max(axis=1) - mean],
            fmt="o",
            markersize=5,
            color=BLUE,
            ecolor=GREY,
            elinewidth=1,
        )
        axes.xaxis.set_major_locator(MaxNLocator(6))
        _name_axes(axes, "valid loss, inherited weights (nats)", "valid loss, stand-alone (nats)")
        return _png(figure)


def ranking_taus(summary: Mapping[str, Any]) -> bytes:
    """Kendall's tau of the super-net, of plain predictors and between seeds, with intervals."""
    found = [(name, tau) for name, tau in taus(summary) if tau["estimate"] is not None]
    with rc_context(_STYLE):
        figure, axes = _axes(height=1.5 + 0.5 * len(found))
        for place, (name, tau) in enumerate(found):
            first, last = name == "super-net", name.startswith("ceiling")
            axes.errorbar(
                [tau["estimate"]],
                [place],
                xerr=[_reach(tau, "low"), _reach(tau, "high")],
                fmt="o" if first else "D" if last else "s",
                markersize=8,
                capsize=4,
                color=BLUE if first else ORANGE if last else GREY,
            )
        axes.axvline(0.0, color="black", linewidth=0.8, zorder=0.5)
        axes.set_yticks(range(len(found)), [shorten(name) for name, _ in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("Kendall's tau with the stand-alone loss")
        return _png(figure)


def _reach(tau: Mapping[str, Any], end: str) -> list[float]:
    """How far the interval reaches to one side; an estimate at the bound may lie outside it."""
    if tau[end] is None:
        return [0.0]
    reach = tau["estimate"] - tau[end]
    return [max(0.0, reach if end == "low" else -reach)]
