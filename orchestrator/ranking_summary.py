"""What `ranking.json` says: agreement of inherited and stand-alone scores, beside plain predictors.

Positive agrees. Plain predictors are turned so that positive means "more is better": tau of
`num_params` is that of -num_params as a predictor of the loss. Intervals are over children.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from evaluators.rank_statistics import (
    Floats,
    Interval,
    additive_fit_predictions,
    bootstrap_interval,
    ceiling_tau,
    kendall_tau,
    pairwise_accuracy,
    reachable_tau,
    spearman_rho,
    top_k_regret,
)
from supernet.errors import TrainingDiverged
from supernet.space import Architecture, SearchSpace

TRUTH = "standalone_loss_nats"
"""Column of the mean over seeds; `standalone_loss_nats_<seed>` hold the seeds."""
FOLDS = 5
STATISTICS: dict[str, Callable[..., float]] = {
    "kendall_tau": kendall_tau,
    "spearman_rho": spearman_rho,
    "pairwise_accuracy": pairwise_accuracy,
    "top_1_regret_nats": partial(top_k_regret, k=1),
    "top_5_regret_nats": partial(top_k_regret, k=5),
}
LABELS = {
    "kendall_tau": "Kendall's tau",
    "spearman_rho": "Spearman's rho",
    "pairwise_accuracy": "pairs in their order",
    "top_1_regret_nats": "regret of the first (nats)",
    "top_5_regret_nats": "regret of the first 5 (nats)",
    "additive_fit": "additive fit, held out",
    "num_params": "number of parameters",
    "flops": "FLOPs",
}

Summary = Mapping[str, Any]


def seed_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of the single seeds of stand-alone training."""
    return frame[[name for name in frame.columns if str(name).startswith(f"{TRUTH}_")]]


def summarise(
    frame: pd.DataFrame, space: SearchSpace, *, replicates: int, seed: int
) -> dict[str, Any]:
    """Statistics of a ranking with their intervals; None where the children do not determine one.

    Args:
        frame: a line per child, as `ranking.parquet` has it; lines with an error are left out.

    Raises:
        TrainingDiverged: if fewer than two children are left.
    """
    whole = frame[frame["error"].isna()]
    if len(whole) < 2:
        raise TrainingDiverged(
            f"a ranking needs two children that trained well, but {len(frame) - len(whole)} of "
            f"{len(frame)} failed, the first with: {frame['error'].dropna().iloc[0]}"
        )
    interval = partial(bootstrap_interval, replicates=replicates, seed=seed)
    truth_N = whole[TRUTH].to_numpy(float)
    inherited_N = whole["inherited_loss_nats"].to_numpy(float)
    seeds = seed_columns(whole)
    return {
        "children": len(whole),
        "left_out": len(frame) - len(whole),
        "seeds": [int(str(name).rpartition("_")[2]) for name in seeds.columns],
        "replicates": replicates,
        "statistics": {
            name: _plain(interval(statistic, (inherited_N, truth_N)))
            for name, statistic in STATISTICS.items()
        },
        "predictor_taus": {
            name: _plain(interval(kendall_tau, (predicted_N, truth_N)))
            for name, predicted_N in _predictions(whole, space, truth_N, seed).items()
        },
        "ceiling_tau": _plain(interval(ceiling_tau, (seeds.to_numpy(float).T,))),
        "reachable_tau": _plain(interval(reachable_tau, (seeds.to_numpy(float).T,))),
    }


def _predictions(
    frame: pd.DataFrame, space: SearchSpace, truth_N: Floats, seed: int
) -> dict[str, Floats]:
    children = [Architecture.parse(text) for text in frame["architecture"]]
    folds = min(FOLDS, len(children))
    name, counts_N = _best_count(children, space, truth_N)
    return {
        "additive_fit": additive_fit_predictions(
            one_hot(children, space), truth_N, folds=folds, seed=seed
        ),
        "num_params": -frame["num_params"].to_numpy(float),
        "flops": -frame["flops"].to_numpy(float),
        f"count of {name}": -counts_N,
    }


def _best_count(
    children: Sequence[Architecture], space: SearchSpace, truth_N: Floats
) -> tuple[str, Floats]:
    """The operator whose count has the largest |tau|, chosen on these very children."""
    counts = {
        name: np.array([child.operators.count(name) for child in children], dtype=float)
        for name in space.operators
    }
    best = max(counts, key=lambda name: np.nan_to_num(abs(kendall_tau(counts[name], truth_N))))
    return best, counts[best]


def one_hot(children: Sequence[Architecture], space: SearchSpace) -> Floats:
    """Which operator each layer holds, (children, layers x candidates)."""
    choices = [(layer, name) for layer, names in enumerate(space.layers) for name in names]
    held = [[child.operators[layer] == name for layer, name in choices] for child in children]
    return np.array(held, dtype=np.float64)


def _plain(interval: Interval) -> dict[str, float | None]:
    values = {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def table(summary: Summary) -> list[tuple[str, Mapping[str, float | None]]]:
    """Names and intervals in the order in which they are shown."""
    taus = {f"tau of {_label(name)}": found for name, found in summary["predictor_taus"].items()}
    named = {_label(name): found for name, found in summary["statistics"].items()}
    return [
        *(named | taus).items(),
        ("ceiling: tau between two seeds", summary["ceiling_tau"]),
        ("tau of a perfect predictor", summary["reachable_tau"]),
    ]


def taus(summary: Summary) -> list[tuple[str, Mapping[str, float | None]]]:
    """The super-net's tau, the plain predictors' and the ceiling, for a plot."""
    return [
        ("super-net", summary["statistics"]["kendall_tau"]),
        *((_label(name), found) for name, found in summary["predictor_taus"].items()),
        ("ceiling (two seeds)", summary["ceiling_tau"]),
    ]


def format_ranking(summary: Summary) -> str:
    """The summary as a table for the terminal."""
    lines = [f"{'':<31}  {'estimate':>8}  {'95 % interval':>16}"]
    for name, found in table(summary):
        low, high = figure(found["low"]), figure(found["high"])
        lines.append(f"{name:<31}  {figure(found['estimate']):>8}  {f'{low} … {high}':>16}")
    return "\n".join([describe(summary), "", *lines])


def describe(summary: Summary) -> str:
    """What was compared, in a sentence or two."""
    count = len(summary["seeds"])
    left_out = f"; {summary['left_out']} more failed and are left out" * bool(summary["left_out"])
    return (
        f"{summary['children']} children scored with the weights of {summary['checkpoint']}, and "
        f"trained stand-alone for {summary['recipe']['steps']:,} steps from {count} "
        f"{'seed' if count == 1 else 'seeds'} each{left_out}. Positive agrees: a child with a "
        f"lower inherited loss, or more of something, has a lower loss stand-alone."
    )


def figure(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def _label(name: str) -> str:
    return LABELS.get(name, name)
