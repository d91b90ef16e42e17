"""Predictions for GLUE's leaderboard: one file per test split, `index` and `prediction`."""

import math
from collections.abc import Sequence
from pathlib import Path

from evaluators.downstream.glue import MAX_SIMILARITY
from evaluators.downstream.tasks import Task
from supernet.errors import InvalidInput


def write_submission(
    task: Task, folder: str | Path, predictions: Sequence[float], *, split: str = "test"
) -> Path:
    """Writes the file that GLUE's leaderboard wants for a test split, and gives its path.

    Labels are written as GLUE's files write them; STS-B's numbers are cut to 0 to 5.

    Args:
        task: one of GLUE's.
        folder: made if it is not there.
        predictions: class numbers, or similarities, in the order of the test split.
        split: test; of MNLI also test_mm.

    Raises:
        InvalidInput: if the task has no such file, or a prediction is no class or not finite.
    """
    name = dict(task.submissions).get(split)
    if name is None:
        raise InvalidInput(
            f"GLUE's leaderboard takes {dict(task.submissions) or 'nothing'} of {task.name}, but "
            f"got {split=}"
        )
    rows = [f"{idx}\t{_written(task, value, idx)}" for idx, value in enumerate(predictions)]
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["index\tprediction", *rows]) + "\n", encoding="utf-8")
    return path


def _written(task: Task, value: float, idx: int) -> str:
    if task.kind == "regression":
        if not math.isfinite(value):
            raise InvalidInput(f"a prediction must be finite, but that of row {idx} is {value}")
        return f"{min(max(float(value), 0.0), MAX_SIMILARITY):.3f}"
    if value not in range(task.num_labels):
        raise InvalidInput(
            f"a prediction of {task.name} must be a class from 0 to {task.num_labels - 1}, but "
            f"that of row {idx} is {value!r}"
        )
    return task.labels[int(value)]
