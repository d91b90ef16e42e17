"""From the rows of the ranking study to its figures: tau by method, with what stands beside it."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

from benchmarks.ranking_pool import Results
from benchmarks.ranking_tasks import SPACE, Task
from evaluators.rank_statistics import (
    Floats,
    Interval,
    additive_fit_predictions,
    bootstrap_interval,
    ceiling_tau,
    kendall_tau,
    paired_difference,
    pairwise_accuracy,
    reachable_tau,
    spearman_rho,
    top_k_regret,
)
from supernet.cost import CostModel
from supernet.data.summary import DataSummary
from supernet.model import TextShape
from supernet.sampler import build_sampler
from supernet.space import Architecture

BASE = "SPOS"
CONTRASTS = (
    ("MAGIC-T", "shuffled walk"),
    ("MAGIC-AT", "MAGIC-T"),
    ("MAGIC-AT", "MAGIC-A"),
    ("SPOS, 9,600 steps", "SPOS"),
)
"""The order of the paths alone, what each half adds to the other, and three times the training."""
TOP_K = 5
LINES = {"ceiling_tau": "two seeds of the truth", "reachable_tau": "a perfect predictor"}


def summarise(tasks: Sequence[Task], results: Results, data: Path) -> dict[str, Any]:
    """The figures of one part, all of whose tasks have results."""
    truths = [task for task in tasks if task.kind == "truth"]
    children = list(dict.fromkeys(task.name for task in truths))
    truth_SN = np.array(
        [
            [results.losses(task)[0] for task in truths if task.seed == seed]
            for seed in dict.fromkeys(task.seed for task in truths)
        ]
    )
    scores = _scores(tasks, results, "loss_nats")
    averaged = _scores(tasks, results, "averaged_loss_nats")
    return {
        "children": len(children),
        "truth_seeds": len(truth_SN),
        "truth_mean_nats": float(truth_SN.mean()),
        "truth_spread_nats": float(truth_SN.mean(0).std()),
        "unigram_nats": DataSummary.load(data).unigram_nats["valid"],
        "ceiling_tau": ceiling_tau(truth_SN),
        "reachable_tau": reachable_tau(truth_SN),
        "predictors": {
            name: {
                **asdict(bootstrap_interval(kendall_tau, [values, truth_SN.mean(0)])),
                "below_spos": asdict(_below(values, scores[BASE], truth_SN.mean(0))),
            }
            for name, values in _predictors(children, truth_SN.mean(0), data).items()
        },
        "methods": {
            name: _method(
                [task for task in tasks if task.kind == "supernet" and task.name == name],
                results,
                scores_SN,
                averaged[name],
                scores,
                truth_SN,
            )
            for name, scores_SN in scores.items()
        },
        "contrasts": {
            f"{one} over {other}": asdict(
                paired_difference(scores[one], scores[other], truth_SN.mean(0))
            )
            for one, other in CONTRASTS
            if one in scores and other in scores
        },
    }


def _scores(tasks: Sequence[Task], results: Results, column: str) -> dict[str, Floats]:
    """Inherited losses by method, (super-net seeds, children)."""
    names = dict.fromkeys(task.name for task in tasks if task.kind == "supernet")
    return {
        name: np.array(
            [
                results.losses(task, column)
                for task in tasks
                if task.kind == "supernet" and task.name == name
            ]
        )
        for name in names
    }


def _method(
    tasks: Sequence[Task],
    results: Results,
    scores_SN: Floats,
    averaged_SN: Floats,
    scores: Mapping[str, Floats],
    truth_SN: Floats,
) -> dict[str, Any]:
    """`over_spos` and `visits_rho` are against SPOS of as many steps, where there is one."""
    truth_N, name = truth_SN.mean(0), tasks[0].name
    as_long = f"{BASE}, 9,600 steps"
    base_SN = scores[as_long if name.endswith("9,600 steps") and as_long in scores else BASE]
    difference = paired_difference(scores_SN, base_SN, truth_N)
    rows = [results.rows(task)[0] for task in tasks]
    return {
        "tau": asdict(bootstrap_interval(kendall_tau, [scores_SN, truth_N])),
        "tau_by_seed": [kendall_tau(scores_N, truth_N) for scores_N in scores_SN],
        "seeds_agree_tau": ceiling_tau(scores_SN),
        "visits_rho": visits_rho(tasks, scores_SN, base_SN),
        "favours": _favours(tasks[0].children, scores_SN.mean(0), truth_N),
        "mean_of_seeds_tau": kendall_tau(scores_SN.mean(0), truth_N),
        "averaged_weights_tau": asdict(bootstrap_interval(kendall_tau, [averaged_SN, truth_N])),
        "over_spos": asdict(difference) if scores_SN is not base_SN else None,
        "spearman_rho": spearman_rho(scores_SN, truth_N),
        "pairwise_accuracy": pairwise_accuracy(scores_SN, truth_N),
        f"top_{TOP_K}_regret_nats": top_k_regret(scores_SN, truth_N, TOP_K),
        "inherited_mean_nats": float(scores_SN.mean()),
        "inherited_spread_nats": float(scores_SN.std(1).mean()),
        "steps": tasks[0].recipe["steps"],
        "train_s": statistics.median(row["train_s"] for row in rows),
        "sampler": tasks[0].sampler,
        "align": tasks[0].align,
    }


def _below(predicted_N: Floats, scores_SN: Floats, truth_N: Floats) -> Interval:
    """How much lower the |tau| of a predictor is than the tau of SPOS, over children."""

    def difference(predicted_N: Floats, scores_SN: Floats, truth_N: Floats) -> float:
        return kendall_tau(scores_SN, truth_N) - abs(kendall_tau(predicted_N, truth_N))

    return bootstrap_interval(difference, [predicted_N, scores_SN, truth_N])


def visits_rho(tasks: Sequence[Task], scores_SN: Floats, base_SN: Floats) -> float | None:
    """Are children favoured whose operators were trained often? Mean Spearman's rho over seeds.

    Of a child's visits (mean over layers of the log of the steps that trained its operator) and how
    far its loss lies below the mean loss that SPOS gives it from other seeds. None where all
    operators are trained equally often.
    """
    space, found = SPACE.build(), []
    for seed, task in enumerate(tasks):
        visits: list[Counter[str]] = [Counter() for _ in space.layers]
        plan = build_sampler(task.sampler, space, seed=task.seed).plan(0, task.recipe["steps"])
        for path in (path for paths in plan for path in paths):
            for layer, operator in enumerate(path.operators):
                visits[layer][operator] += 1
        visits_N = [
            np.mean([np.log1p(visits[layer][name]) for layer, name in enumerate(child.operators)])
            for child in map(Architecture.parse, task.children)
        ]
        below_N = np.delete(base_SN, seed, axis=0).mean(0) - scores_SN[seed]
        found.append(spearman_rho(visits_N, below_N))
    return None if np.isnan(found).any() else float(np.mean(found))


def _favours(children: Sequence[str], scores_N: Floats, truth_N: Floats) -> dict[str, Any]:
    """By operator: rho of its count in a child and how much better the child ranks than expected.

    Expected is the rank that follows from the truth's by linear regression, for a predictor that
    errs without looking at operators does not rank a bad child as badly as the truth does.
    """
    paths = [Architecture.parse(child).operators for child in children]
    return {
        name: asdict(
            bootstrap_interval(
                favour,
                [np.array([float(path.count(name)) for path in paths]), scores_N, truth_N],
                replicates=500,
            )
        )
        for name in SPACE.candidates
    }


def favour(counts_N: Floats, scores_N: Floats, truth_N: Floats) -> float:
    """Spearman's rho of the counts and the ranks by which scores lie below what truth predicts."""
    scores_N, truth_N = rankdata(scores_N), rankdata(truth_N)
    slope, start = np.polyfit(truth_N, scores_N, 1)
    return spearman_rho(counts_N, slope * truth_N + start - scores_N)


def _predictors(children: Sequence[str], truth_N: Floats, data: Path) -> dict[str, Floats]:
    """What ranks children without a super-net; positive tau of a count: more is better."""
    space = SPACE.build()
    summary = DataSummary.load(data)
    shape = TextShape.of(
        SPACE,
        vocab_size=summary.vocab_size,
        max_length=summary.sequence_length,
        pad_id=summary.pad_id,
    )
    model, paths = CostModel(space, shape), [Architecture.parse(child) for child in children]
    costs = [model.cost(path) for path in paths]
    one_hot = np.array(
        [
            [float(path.operators[n] == name) for n, row in enumerate(space.layers) for name in row]
            for path in paths
        ]
    )
    counts = {
        f"count of {name}": -np.array([float(path.operators.count(name)) for path in paths])
        for name in space.operators
    }
    return {
        "number of parameters": -np.array([float(cost.num_params) for cost in costs]),
        "FLOPs": -np.array([float(cost.flops) for cost in costs]),
        **counts,
        "additive fit, held out": additive_fit_predictions(one_hot, truth_N),
    }


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    lines = []
    for name, part in report.items():
        lines.append(
            f"{name}: {part['children']} children, two seeds of the truth agree "
            f"{part['ceiling_tau']:.3f}, reachable {part['reachable_tau']:.3f}, loss "
            f"{part['truth_mean_nats']:.3f} ± {part['truth_spread_nats']:.3f} nats (unigrams "
            f"{part['unigram_nats']:.3f})"
        )
        for method, found in part["methods"].items():
            over = found["over_spos"]
            gain = "" if over is None else f"   over SPOS {_text(Interval(**over), sign=True)}"
            lines.append(
                f"  {method:24} tau {_text(Interval(**found['tau']))}   {found['steps']:5} steps "
                f"{found['train_s']:5.0f} s   {found['inherited_mean_nats']:.3f} nats   agree "
                f"{found['seeds_agree_tau']:.2f}{gain}"
            )
        for contrast, found in part["contrasts"].items():
            lines.append(f"  {contrast:42} {_text(Interval(**found), sign=True)}")
        for predictor, found in part["predictors"].items():
            below = _text(Interval(**found["below_spos"]), sign=True)
            tau = Interval(*(found[end] for end in ("estimate", "low", "high")))
            lines.append(f"  {predictor:24} tau {_text(tau)}   |tau| below SPOS by {below}")
    return "\n".join(lines)


def _text(interval: Interval, *, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{interval.estimate:{plus}.3f} [{interval.low:{plus}.3f}, {interval.high:{plus}.3f}]"


def plot(part: dict[str, Any], path: Path) -> None:
    """tau by method: interval over children, a dot per super-net seed; predictors beside."""
    rows = [(name, found["tau"], found["tau_by_seed"]) for name, found in part["methods"].items()]
    rows += [(name, found, []) for name, found in part["predictors"].items()]
    figure = Figure(figsize=(7.5, 0.36 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    for place, (_, interval, seeds) in enumerate(reversed(rows)):
        colour = "#0072B2" if seeds else "#6B6B6B"
        axes.plot([interval["low"], interval["high"]], [place, place], color=colour, linewidth=2)
        axes.plot(interval["estimate"], place, "o", color=colour)
        axes.plot(seeds, [place] * len(seeds), "|", color="#D55E00", markersize=9)
    for name, style in (("ceiling_tau", "--"), ("reachable_tau", ":")):
        axes.axvline(part[name], linestyle=style, color="#009E73", label=LINES[name])
    axes.axvline(0.0, color="#B0B0B0", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set_xlabel("Kendall's tau against stand-alone loss, 95 % interval; red: super-net seeds")
    axes.legend(loc="lower left", frameon=False)
    figure.savefig(path, dpi=130)
