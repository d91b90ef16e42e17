"""A summary of fine-tunings as people read it: scores x 100, as the papers give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from evaluators.downstream.tasks import TASKS

GLUE = tuple(name for name, task in TASKS.items() if task.submissions)
"""GLUE's tasks; WNLI is left out, as RoBERTa's and ELECTRA's authors leave it out on dev."""
NOTHING = "–"

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """A model on a task, all in words; `diverged` counts seeds, `trivial` learns nothing."""

    model: str
    task: str
    median: str
    mean: str
    trivial: str
    metrics: str
    recipe: str
    seeds: int
    diverged: int
    notes: str = ""
    """What sets this model apart from others of the same weights, such as ", from MNLI"."""


@dataclass(frozen=True)
class Overview:
    """A model with its median on every task and, where it has all of GLUE, their mean."""

    model: str
    medians: tuple[str, ...]
    glue: str


def lines(summary: Mapping[str, Any]) -> list[Line]:
    """One per model, task and recipe, in the order in which they were begun."""
    results = summary["results"]
    labels = _labels(results)
    return [_line(result, label) for result, label in zip(results, labels, strict=True)]


def tasks(summary: Mapping[str, Any]) -> list[str]:
    """Those that any model was fine-tuned on, in GLUE's order."""
    done = {result["task"] for result in summary["results"]}
    return [name for name in TASKS if name in done] + sorted(done - set(TASKS))


def overview(summary: Mapping[str, Any]) -> list[Overview]:
    """One per model; of a task with several recipes that with most seeds, the last if it is a draw.

    No mean of GLUE where other data stood in for a task's own, as `Layout.stand_in` says.

    A model whose RTE, MRPC or STS-B started from MNLI takes its other tasks from the plain one.
    """
    results, names = summary["results"], tasks(summary)
    found: dict[str, dict[str, Result]] = {}
    for result, label in zip(results, _labels(results), strict=True):
        if result["headline"] is not None:
            best = found.setdefault(label, {})
            if result["seeds"] >= best.get(result["task"], {"seeds": 0})["seeds"]:
                best[result["task"]] = result
    for label, best in found.items():
        plain = label.removesuffix(_FROM_MNLI)
        if plain != label:
            found[label] = {**found.get(plain, {}), **best}
    return [
        Overview(
            label,
            tuple(_percent(best[name]["headline"] if name in best else None) for name in names),
            _percent(mean(best[name]["headline"] for name in GLUE) if _is_glue(best) else None),
        )
        for label, best in found.items()
    ]


def format_summary(summary: Mapping[str, Any]) -> str:
    """The table that the command prints."""
    rows = lines(summary)
    width = max([28, *(len(row.model) for row in rows)])
    head = f"{'task':<7} {'median':>7} {'mean ± 95 %':>15} {'trivial':>8} {'seeds':>6}  metrics"
    text = [f"{'model':<{width}} {head}"]
    for row in rows:
        seeds = f"{row.seeds}" + (f" ({row.diverged} diverged)" if row.diverged else "")
        text.append(
            f"{row.model:<{width}} {row.task:<7} {row.median:>7} {row.mean:>15} "
            f"{row.trivial:>8} {seeds:>6}  {row.metrics} ({row.recipe})"
        )
    means = [f"{row.model}: GLUE {row.glue}" for row in overview(summary) if row.glue != NOTHING]
    return "\n".join([*text, *means])


_FROM_MNLI = ", from MNLI"


def _is_glue(best: Mapping[str, Result]) -> bool:
    return all(name in best and not best[name].get("stand_in") for name in GLUE)


def _labels(results: Sequence[Result]) -> list[str]:
    """Names of the models; with their digests where two are called alike."""
    digests: dict[str, set[str]] = {}
    for result in results:
        digests.setdefault(result["model"], set()).add(result["model_digest"])
    return [_label(result, several=len(digests[result["model"]]) > 1) for result in results]


def _label(result: Result, *, several: bool) -> str:
    digest = f" [{result['model_digest'][:6]}]" if several else ""
    return f"{result['model']}{digest}{_notes(result)}"


def _notes(result: Result) -> str:
    teacher = result.get("teacher")
    notes = [
        "" if result["pretrained"] else ", random weights",
        "" if result["pooling"] == "cls" else f", pooling {result['pooling']}",
        f", taught by {teacher.rpartition(' ')[0]}" if teacher else "",
        _FROM_MNLI if result["start"] else "",
    ]
    return "".join(notes)


def _line(result: Result, label: str) -> Line:
    return Line(
        model=label,
        task=result["task"],
        median=_percent(result["headline"]),
        mean=mean_of(result),
        trivial=_percent(result.get("trivial")),
        metrics=_metrics(result),
        recipe=recipe(result),
        seeds=result["seeds"],
        diverged=result["diverged"],
        notes=_notes(result),
    )


def _metrics(result: Result) -> str:
    scores = [
        f"{name} {_percent(value)}"
        for name, value in result["scores"].items()
        if name != "null_odds"
    ]
    if not scores:
        return "diverged with every seed"
    return ", ".join(scores) + (f"; {stand_in}" if (stand_in := result.get("stand_in")) else "")


def mean_of(result: Result) -> str:
    """The mean over seeds with half its 95 % interval, as far as there are any."""
    if result["interval"] is None:
        return _percent(result["mean"])
    return f"{_percent(result['mean'])} ± {_percent(result['interval'][1] - result['mean'])}"


def recipe(result: Result) -> str:
    """What was chosen, and what it was done with."""
    steps = f", at most {result['max_steps']} steps" if result.get("max_steps") else ""
    stride = f", stride {result['stride']}" if result.get("stride") else ""
    return (
        f"learning rate {result['learning_rate']:g}, {result['epochs']:g} epochs{steps}, batch "
        f"{result['batch_size']}, {result['max_length']} tokens{stride}"
    )


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{100 * value:.1f}"
