"""README.md of a fine-tuned model, with the figures that the Hugging Face hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluators.downstream.tasks import Task
from orchestrator.finetuning.table import recipe

_HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


def finetuned_card(
    task: Task, row: Mapping[str, Any], *, examples: Mapping[str, int], hub: str | None
) -> str:
    """The text of README.md.

    Args:
        row: of the fine-tuning; see `orchestrator.finetuning.trial.run_job`.
        examples: of each dev split, for local files may hold another number than the hub's.
        hub: name of the model on the hub that was fine-tuned, if it is from there.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    front = {
        "library_name": "transformers",
        **({"base_model": hub} if hub else {}),
        "pipeline_tag": _pipeline(task),
        "datasets": [task.hub],
        "tags": ["magic-nas"],
        "model-index": [{"name": _name(task, row), "results": _results(task, row, examples)}],
    }
    return environment.get_template("finetuned_card.md.j2").render(
        front=yaml.safe_dump(front, sort_keys=False, allow_unicode=True),
        name=_name(task, row),
        task=task,
        row=row,
        scores={name: 100 * value for name, value in row["scores"].items() if name != "null_odds"},
        recipe=recipe(row),
    )


def _name(task: Task, row: Mapping[str, Any]) -> str:
    return f"{row['model']} on {task.name}"


def _pipeline(task: Task) -> str:
    return "question-answering" if task.kind == "spans" else "text-classification"


def _results(
    task: Task, row: Mapping[str, Any], examples: Mapping[str, int]
) -> list[dict[str, Any]]:
    """One per dev split: that of a metric with a suffix ("accuracy_mm") is dev with the same."""
    splits = {
        split: {
            metric: row["scores"][f"{metric}{split.removeprefix('dev')}"]
            for metric in task.metrics
            if f"{metric}{split.removeprefix('dev')}" in row["scores"]
        }
        for split in examples
    }
    return [
        {
            "task": {"type": _pipeline(task)},
            "dataset": {
                "type": task.hub,
                "name": f"{task.name}, {examples[split]} examples",
                **({"config": task.hub_configuration} if task.hub_configuration else {}),
                "split": dict(task.hub_splits)[split],
            },
            "metrics": [
                {"type": _HUB_METRICS.get(metric, metric), "value": round(value, 4)}
                for metric, value in scores.items()
            ],
        }
        for split, scores in splits.items()
        if scores
    ]
