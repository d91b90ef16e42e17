"""README.md of a fine-tuned model, with the figures that the Hugging Face hub reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluators.downstream.heads import TaskData
from evaluators.downstream.tasks import Task
from orchestrator.finetuning.table import recipe

_HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}


def finetuned_card(data: TaskData, row: Mapping[str, Any], *, hub: str | None) -> str:
    """The text of README.md.

    Args:
        row: of the fine-tuning; see `orchestrator.finetuning.trial.run_job`.
        hub: name of the model on the hub that was fine-tuned, if it is from there.
    """
    task = data.task
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
        **({"datasets": [task.hub]} if data.from_hub else {}),
        "tags": ["magic-nas"],
        "model-index": [{"name": _name(task, row), "results": _results(data, row)}],
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


def _dataset(data: TaskData, split: str) -> dict[str, str]:
    task, examples = data.task, f"{len(data.dev[split])} examples"
    if not data.from_hub:
        return {"type": task.name, "name": f"{task.name}, {examples} of local files"}
    return {
        "type": task.hub,
        "name": f"{task.name}, {examples}",
        **({"config": task.hub_configuration} if task.hub_configuration else {}),
        "split": dict(task.hub_splits)[split],
    }


def _pipeline(task: Task) -> str:
    return "question-answering" if task.kind == "spans" else "text-classification"


def _results(data: TaskData, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One per dev split: that of a metric with a suffix ("accuracy_mm") is dev with the same.

    Local files may hold other rows than the hub's splits of that name.
    """
    task = data.task
    splits = {
        split: {
            metric: row["scores"][f"{metric}{split.removeprefix('dev')}"]
            for metric in task.metrics
            if f"{metric}{split.removeprefix('dev')}" in row["scores"]
        }
        for split in data.dev
    }
    return [
        {
            "task": {"type": _pipeline(task)},
            "dataset": _dataset(data, split),
            "metrics": [
                {"type": _HUB_METRICS.get(metric, metric), "value": round(value, 4)}
                for metric, value in scores.items()
            ],
        }
        for split, scores in splits.items()
        if scores
    ]
