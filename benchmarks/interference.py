"""Do the paper's two findings on interference hold, and how does each way of training change it?

    python -m benchmarks.interference [--quick] [--work DIR]

Trains the quickstart's space on books with SPOS, MAGIC-T, MAGIC-A and MAGIC-AT as `magic-nas train`
does (Ray, DeepSpeed), then measures each super-net as `magic-nas interference` does, on the same
groups of children and batches. Goes on where it stopped. Prints a table and one JSON object, in
which `over_spos` is the mean cosine of a method's gradients after the last step less that of SPOS,
paired by group; a full run also writes `benchmarks/results/interference.{json,parquet,png}`.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.record import RESULTS, write_record
from orchestrator import load_config, run
from orchestrator.interference import ROWS, SUMMARY, interference
from orchestrator.interference_summary import format_findings
from orchestrator.store import RunStore

BOOKS = "corpus/books_pd/train.txt"
QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.yaml"
SEED = 0
DRAWS = 2000
ALIGN = "train.align={weight: 1.0}"
METHODS = {
    "SPOS": ["train.sampler={name: uniform}", "train.align=null"],
    "MAGIC-T": ["train.sampler={name: magic_t}", "train.align=null"],
    "MAGIC-A": ["train.sampler={name: uniform}", ALIGN],
    "MAGIC-AT": ["train.sampler={name: magic_t}", ALIGN],
}
FULL = ["train.steps=1500", "train.checkpoint_steps=750", "train.collapsed_within_nats=null"]
QUICK = [
    "train.steps=40",
    "train.checkpoint_steps=20",
    "train.collapsed_within_nats=null",
    "data.max_mb=1",
    "space.hidden_size=32",
    "search.limits=",
]
QUICK_MEASURE = ["interference.groups=4", "interference.children=6", "interference.replicates=200"]


def main() -> int:
    """Train what is not trained, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny super-nets, nothing kept")
    parser.add_argument("--work", type=Path, default=Path("runs/interference"))
    options = parser.parse_args()
    if not os.environ.get("MAGIC_NAS_DATA"):
        print(f"interference: set MAGIC_NAS_DATA to the folder of {BOOKS}", file=sys.stderr)
        return 2
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            results, _ = _measure_all(Path(folder), QUICK, QUICK_MEASURE)
    else:
        results, rows = _measure_all(options.work, FULL, [])
        RESULTS.mkdir(exist_ok=True)
        rows.to_parquet(RESULTS / "interference.parquet", index=False)
        plot(results, RESULTS / "interference.png")
        write_record("interference", results, seeds={"run": SEED})
    print(json.dumps(results))
    return 0


def _measure_all(
    work: Path, settings: list[str], measure: list[str]
) -> tuple[dict[str, Any], pd.DataFrame]:
    results, frames = {}, []
    source = f"data.source={os.environ['MAGIC_NAS_DATA']}/{BOOKS}"
    for name, method in METHODS.items():
        out = work / name.lower()
        config = load_config(QUICKSTART, [source, f"seed={SEED}", *method, *settings])
        run(config, out=out, only=("data", "train"))
        store = RunStore(out)
        if not store.exists(SUMMARY):
            interference(out, measure)
        results[name] = store.read_json(SUMMARY)
        print(f"{name}\n{format_findings(results[name])}\n", flush=True)
        frames.append(pd.read_parquet(out / ROWS).assign(method=name))
    rows = pd.concat(frames, ignore_index=True)
    for name in METHODS:
        results[name]["over_spos"] = over_spos(rows, name) if name != "SPOS" else None
    print("".join(f"{name:<9} over SPOS {r['over_spos']}\n" for name, r in results.items()))
    return results, rows


def over_spos(rows: pd.DataFrame, method: str) -> dict[str, float]:
    """The mean cosine of gradients less SPOS's, after the last step; groups are resampled."""
    last = rows[rows["step"] == rows["step"].max()]
    sums = last.groupby(["method", "group"])["gradient_cosine"].agg(["sum", "count"])
    ours, spos = sums.loc[method], sums.loc["SPOS"].loc[sums.loc[method].index]
    draws = np.random.default_rng(SEED).integers(len(ours), size=(DRAWS, len(ours)))
    means = [
        part["sum"].to_numpy()[draws].sum(1) / part["count"].to_numpy()[draws].sum(1)
        for part in (ours, spos)
    ]
    low, high = np.quantile(means[0] - means[1], [0.025, 0.975])
    value = ours["sum"].sum() / ours["count"].sum() - spos["sum"].sum() / spos["count"].sum()
    return {"value": float(value), "low": float(low), "high": float(high)}


def plot(results: dict[str, Any], path: Path) -> None:
    """Mean cosine of gradients over the number of differing layers, after the last step."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.add_subplot()
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    for (name, summary), colour in zip(results.items(), colours, strict=True):
        points = summary["steps"][-1]["by_distance"]
        distances = [point["distance"] for point in points]
        axes.plot(distances, [point["value"] for point in points], "o-", color=colour, label=name)
        axes.fill_between(
            distances,
            [point["low"] for point in points],
            [point["high"] for point in points],
            color=colour,
            alpha=0.15,
        )
    axes.set_xlabel("layers in which two children differ")
    axes.set_ylabel("cosine of a shared operator's gradients")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
