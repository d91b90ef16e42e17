"""What was tried before the ranking study's space and recipe were chosen: tau from the kept rows.

    python -m benchmarks.ranking_exploration

Reads `benchmarks/results/ranking_exploration.parquet`, a row per model and child: stand-alone
trainings and super-nets of six layers at width 64, on children and seeds that the study does not
use. Trains nothing.
"""

import json
import sys

import numpy as np
import pandas as pd

from benchmarks.record import RESULTS
from evaluators.rank_statistics import ceiling_tau, kendall_tau


def main() -> int:
    """Print, per space, recipe and method, tau of every super-net seed."""
    rows = pd.read_parquet(RESULTS / "ranking_exploration.parquet")
    rows["steps"] = [json.loads(recipe)["steps"] for recipe in rows["recipe"]]
    rows["label"] = [_label(*pair) for pair in zip(rows["sampler"], rows["align"], strict=True)]
    rows["masked"] = [json.loads(data)["mask_probability"] for data in rows["data"]]
    for (space, masked), part in rows.groupby(["space", "masked"], sort=False):
        truths = part[part["kind"] == "truth"]
        truth = truths.pivot_table(index="architecture", columns="seed", values="loss_nats")
        twice = truth.dropna().to_numpy(np.float64).T
        print(
            f"\n{space}; {masked:.0%} masked; {len(truth)} children of {truths['steps'].iloc[0]} "
            f"steps: {truth.stack().mean():.3f} nats, ceiling {ceiling_tau(twice):.2f}"
        )
        nets = part[part["kind"] == "supernet"]
        for (steps, label), found in nets.groupby(["steps", "label"], sort=True):
            print(_line(f"{steps} steps, {label}", found, truth.mean(axis=1)))
    return 0


def _label(sampler: str, align: str) -> str:
    """The sampler's name, other settings of it, and MAGIC-A's weight and start."""
    chosen = json.loads(sampler) or {"name": "none"}
    name = {"fairwalk:FairWalk": "fair walk"}.get(chosen["name"], chosen["name"])
    if "changes" in chosen:
        name = f"{name}, {chosen['changes']} changes"
    alignment = json.loads(align)
    if not alignment:
        return str(name)
    return f"{name} with λ {alignment['weight']:g} from {alignment.get('start', 0.5):g}"


def _line(name: str, found: pd.DataFrame, truth: "pd.Series[float]") -> str:
    taus = []
    for _, one in found.groupby("seed"):
        children = one[one["architecture"].isin(truth.index)]
        wanted = truth.reindex(children["architecture"])
        taus.append(kendall_tau(children["loss_nats"].to_numpy(), wanted.to_numpy()))
    seeds = " ".join(f"{tau:.2f}" for tau in taus)
    return f"  {name:46} tau {np.mean(taus):.2f} ({seeds}), {found['loss_nats'].mean():.3f} nats"


if __name__ == "__main__":
    sys.exit(main())
