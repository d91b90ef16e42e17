"""What a run's interference amounts to: the paper's two findings with intervals, and the averages.

From the measured rows to plain values and to a table for the terminal; draws no plots.
The findings are the paper's (ICML 2022): gradients are less alike (1) the more operators two
children differ in, (2) the less alike inputs and outputs of the shared operator are. Rank
correlations, intervals over groups and the strata of (2) are our own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from orchestrator.bootstrap import Estimate, GroupBootstrap

LIKENESSES = ("input_cosine", "input_neg_mse", "output_cosine", "output_neg_mse")
STRATUM = ("distance", "layer", "operator")
"""What is held fixed in (2): children far apart differ in gradients and in inputs alike."""
BINS = 10

Value = dict[str, Any]


def summarise(frame: pd.DataFrame, *, replicates: int, seed: int) -> Value:
    """Findings and averages of every step, as plain values; intervals are of 95 %.

    Rows without a cosine are left out. `frame` has the columns of `interference.parquet`.
    """
    rows = frame.dropna(subset=["gradient_cosine", *LIKENESSES])
    draws = GroupBootstrap(int(frame["group"].max()) + 1, replicates=replicates, seed=seed)
    return {
        "groups": int(frame["group"].nunique()),
        "pairs": int(len(frame[["group", "pair"]].drop_duplicates())),
        "steps": [
            {"step": _first(part, "step"), "checkpoint": _first(part, "checkpoint")}
            | _of(part, draws)
            for _, part in rows.groupby("step", sort=True)
        ],
    }


def _of(rows: pd.DataFrame, draws: GroupBootstrap) -> Value:
    return {
        "rows": len(rows),
        "mean_cosine": _mean(rows, draws).to_dict(),
        "distance": _finding(_by_distance(rows, draws), predicted=-1),
        **{name: _similarity(rows, name, draws) for name in LIKENESSES},
        "by_distance": _averages(rows, "distance", draws),
        "by_kind": _averages(rows, "kind", draws, findings=True),
        "by_layer": _averages(rows, "layer", draws, findings=True),
        "by_input_cosine": _binned(rows, "input_cosine", draws),
        "by_output_cosine": _binned(rows, "output_cosine", draws),
    }


def _first(rows: pd.DataFrame, column: str) -> Any:
    return rows[column].tolist()[0]


def _finding(found: Estimate, *, predicted: int) -> Value:
    """A correlation and whether its interval lies on the side that the paper's finding predicts."""
    verdict = "undecided"
    if found.low is not None and found.high is not None and found.low * found.high > 0:
        verdict = "holds" if found.low * predicted > 0 else "reversed"
    return {**found.to_dict(), "verdict": verdict}


def _mean(rows: pd.DataFrame, draws: GroupBootstrap) -> Estimate:
    return draws.mean(rows["gradient_cosine"], rows["group"])


def _by_distance(rows: pd.DataFrame, draws: GroupBootstrap) -> Estimate:
    return draws.spearman(rows["distance"], rows["gradient_cosine"], rows["group"])


def _within(rows: pd.DataFrame, name: str, draws: GroupBootstrap) -> Estimate:
    strata = rows.groupby(list(STRATUM)).ngroup()
    return draws.spearman_within(rows[name], rows["gradient_cosine"], rows["group"], strata)


def _similarity(rows: pd.DataFrame, name: str, draws: GroupBootstrap) -> Value:
    overall = draws.spearman(rows[name], rows["gradient_cosine"], rows["group"])
    return {
        "overall": _finding(overall, predicted=1),
        "within": _finding(_within(rows, name, draws), predicted=1),
    }


def _averages(
    rows: pd.DataFrame, column: str, draws: GroupBootstrap, *, findings: bool = False
) -> list[Value]:
    """Mean cosine for each value of a column, on request with the findings inside it."""
    lines = []
    for _, part in rows.groupby(column, sort=True):
        line: Value = {column: _first(part, column), "rows": len(part)}
        line |= _mean(part, draws).to_dict()
        if findings:
            line["distance_finding"] = _finding(_by_distance(part, draws), predicted=-1)
            for name in ("input_cosine", "output_cosine"):
                line[f"{name}_finding"] = _finding(_within(part, name, draws), predicted=1)
        lines.append(line)
    return lines


def _binned(rows: pd.DataFrame, name: str, draws: GroupBootstrap) -> list[Value]:
    """Mean cosine of gradients in bins of equal numbers of rows; equal values share a bin."""
    bins = pd.qcut(rows[name], BINS, labels=False, duplicates="drop").fillna(0)
    return [
        {name: float(part[name].mean()), "rows": len(part), **_mean(part, draws).to_dict()}
        for _, part in rows.groupby(bins)
    ]


def format_estimate(found: Mapping[str, Any]) -> str:
    """`-0.31 [-0.35, -0.27]`, the interval in brackets."""
    if found["value"] is None:
        return "not determined"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def headline(step: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The three figures that say whether the findings hold: distance, inputs, outputs."""
    return step["distance"], step["input_cosine"]["within"], step["output_cosine"]["within"]


def format_findings(summary: Mapping[str, Any]) -> str:
    """The findings as a table for the terminal, a line per checkpoint."""
    titles = ("(1) differing layers", "(2) likeness of inputs", "(2) likeness of outputs")
    lines = [
        "gradients' cosine: Spearman's correlation with, and whether the finding holds",
        " " * 16 + "".join(f"{title:<32}" for title in titles).rstrip(),
    ]
    for step in summary["steps"]:
        cells = (f"{format_estimate(found)}  {found['verdict']}" for found in headline(step))
        line = f"{step['checkpoint']:<16}" + "".join(f"{cell:<32}" for cell in cells)
        lines.append(line.rstrip())
    lines.append(
        f"[95 % interval over {summary['groups']:,} groups of children, {summary['pairs']:,} "
        f"pairs]; (2) at equal {', '.join(STRATUM[:-1])} and {STRATUM[-1]}"
    )
    return "\n".join(lines)
