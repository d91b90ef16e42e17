"""The report's plots: each function takes frames and gives a PNG's bytes, and touches no file.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; line styles differ too.
Long names stay out of the plots: the report lists them below.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from supernet.space import Architecture, SearchSpace

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#6B6B6B"
CYCLE = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
STYLES = ("-", "--", "-.", ":")

_STYLE = {
    "font.size": 13,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "axes.titlesize": 12,
}
_NAME_LENGTH = 22


def supernet_loss(train: pd.DataFrame, probe: pd.DataFrame, unigram_nats: float | None) -> bytes:
    """Train loss (raw and smoothed), the probe paths' valid losses, the unigrams' line."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        _train_curve(axes, train)
        # Two palettes' worth of styles at most: dashes and colours repeat with different periods.
        for number, (_, path) in enumerate(probe.dropna().groupby("architecture", sort=True)):
            axes.plot(
                path["step"],
                path["val_loss_nats"],
                marker="o",
                markersize=4,
                color=CYCLE[1:][number % 5],
                linestyle=STYLES[number % 4],
                label=f"valid, probe path {number + 1}",
            )
        _unigram_line(axes, unigram_nats)
        _name_axes(axes, "optimiser step", "loss (nats per target)")
        _legend_below(figure, axes)
        return _png(figure)


def anchors(anchor: pd.DataFrame, train: pd.DataFrame) -> bytes:
    """The loss of each new anchor and of the one it replaced; below, the alignment loss."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        axes.remove()
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        above.step(anchor["step"], anchor["val_loss_nats"], where="post", color=BLUE)
        above.plot(anchor["step"], anchor["val_loss_nats"], "o", color=BLUE, label="new anchor")
        above.plot(
            anchor["step"], anchor["previous_loss_nats"], "x", color=RED, label="anchor it replaced"
        )
        aligned = train[train["step"] >= anchor["step"].min()]
        below.plot(aligned["step"], aligned["alignment_loss"], color=GREEN, linewidth=1)
        _name_axes(above, "", "held-out loss (nats)")
        _name_axes(below, "optimiser step", "alignment loss")
        _legend_below(figure, above)
        return _png(figure)


def operator_frequency(
    architectures: Sequence[Architecture], space: SearchSpace | None = None
) -> bytes:
    """Heat map of how often each layer holds each operator; what it cannot hold is grey."""
    shares, names = _operator_shares(architectures, space)
    depth = shares.shape[1]
    with rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(min(14.0, max(6.4, 2.6 + 0.42 * depth)), max(2.6, 1.5 + 0.42 * len(names))),
            layout="constrained",
        )
        axes = figure.add_subplot()
        image = axes.imshow(shares * 100, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        axes.set_facecolor("#CFCFCF")
        axes.set_yticks(range(len(names)), [shorten(name) for name in names])
        axes.xaxis.set_major_locator(MaxNLocator(min(depth, 24), integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlim(-0.5, depth - 0.5)
        axes.spines[:].set_visible(False)
        if depth <= 16:
            _write_shares(axes, shares)
        axes.set_xlabel("layer (0 is next to the stem)")
        figure.colorbar(image, ax=axes, label="share (%)", pad=0.02)
        return _png(figure)


def final_loss_bars(models: Sequence[dict[str, Any]], unigram_nats: float | None) -> bytes:
    """Test loss of each model trained stand-alone, with the unigrams' line."""
    names = [shorten(str(model["name"])) for model in models]
    losses = [float(model["test_loss_nats"]) for model in models]
    with rc_context(_STYLE):
        figure, axes = _axes(height=max(2.4, 1.7 + 0.42 * len(names)))
        bars = axes.barh(names, losses, color=[_model_colour(model["name"]) for model in models])
        # On white, for they may reach the line, which is behind them.
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.bar_label(bars, fmt="%.3f", padding=4, bbox=white)
        axes.set_xlim(0, 1.15 * max([*losses, unigram_nats or 0.0]))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        if unigram_nats is not None:
            label = f"unigrams {unigram_nats:.3f}"
            axes.axvline(unigram_nats, color="black", linestyle=":", label=label, zorder=0.5)
            _legend_below(figure, axes)
        axes.set_xlabel("test loss (nats)")
        return _png(figure)


def retraining_curves(retrain: pd.DataFrame, unigram_nats: float | None) -> bytes:
    """Stand-alone training: smoothed train loss as a line, valid loss as points."""
    with rc_context(_STYLE):
        figure, axes = _axes()
        names = sorted(
            retrain["name"].unique(), key=lambda name: (name.startswith("control"), name)
        )
        controls = 0
        for name in names:
            rows = retrain[retrain["name"] == name]
            style = "-"
            if name.startswith("control"):
                style, controls = STYLES[1 + controls % 3], controls + 1
            colour = _model_colour(name)
            train = rows.dropna(subset=["loss_nats"])
            axes.plot(
                train["step"],
                _smooth(train["loss_nats"]),
                color=colour,
                linestyle=style,
                label=f"{shorten(name)}, train",
            )
            valid = rows.dropna(subset=["val_loss_nats"])
            if not valid.empty:
                axes.plot(
                    valid["step"],
                    valid["val_loss_nats"],
                    color=colour,
                    linestyle="none",
                    marker="o" if style == "-" else "s",
                    markersize=5,
                    markeredgecolor="black",
                    markeredgewidth=0.5,
                    label=f"{shorten(name)}, valid",
                )
        _unigram_line(axes, unigram_nats)
        _name_axes(axes, "optimiser step", "loss (nats per target)")
        _legend_below(figure, axes)
        return _png(figure)


def shorten(name: str) -> str:
    """A name of at most 22 characters, so that labels stay beside their axes."""
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"


def _axes(height: float = 4.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    return figure, figure.add_subplot()


def _train_curve(axes: Any, train: pd.DataFrame) -> None:
    rows = train.dropna(subset=["loss_nats"])
    if rows.empty:
        return
    axes.plot(rows["step"], rows["loss_nats"], color=SKY, linewidth=0.9, alpha=0.8, label="train")
    axes.plot(
        rows["step"], _smooth(rows["loss_nats"]), color=BLUE, linewidth=2, label="train, smoothed"
    )


def _smooth(losses: pd.Series) -> pd.Series:
    """Running mean over a thirtieth of the points, so that trends stay where they are."""
    window = max(1, len(losses) // 30)
    return losses.rolling(window, center=True, min_periods=1).mean()


def _unigram_line(axes: Any, unigram_nats: float | None) -> None:
    if unigram_nats is not None:
        axes.axhline(
            unigram_nats, color="black", linestyle=":", label=f"unigrams {unigram_nats:.3f}"
        )


def _operator_shares(
    architectures: Sequence[Architecture], space: SearchSpace | None
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], list[str]]:
    """Shares by operator and layer; NaN where the space has no such operator in that layer."""
    depth = len(architectures[0])
    seen = {name for one in architectures for name in one.operators}
    names = [*space.operators] if space and seen <= set(space.operators) else sorted(seen)
    shares = np.zeros((len(names), depth))
    for layer in range(depth):
        held = [one.operators[layer] for one in architectures]
        for row, name in enumerate(names):
            shares[row, layer] = held.count(name) / len(held)
            if space and not held.count(name) and name not in space.layers[layer]:
                shares[row, layer] = np.nan
    return shares, names


def _write_shares(axes: Any, shares: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    for (row, layer), share in np.ndenumerate(shares):
        if not np.isnan(share):
            colour = "white" if share > 0.5 else "black"
            axes.text(
                layer,
                row,
                f"{share * 100:.0f}",
                ha="center",
                va="center",
                color=colour,
                fontsize=10,
            )


def _model_colour(name: str) -> str:
    """Blue for the best, orange for the baseline; controls by their number."""
    number = re.search(r"\d+\Z", name)
    controls = (GREY, GREEN, PURPLE, SKY)
    fixed = {"best": BLUE, "baseline": ORANGE}
    return fixed.get(name) or controls[int(number.group() if number else 0) % len(controls)]


def _name_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _legend_below(figure: Figure, axes: Any) -> None:
    """Outside the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels), default=0) > 16 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()
