"""Runs tasks of the ranking study in parallel, one process each, and keeps every result at once.

A result is found again by its task's key: in the work folder, one file per task, or among the rows
that the repository holds. So a study stops at any time and goes on.
"""

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from benchmarks.ranking_tasks import Task, run_task

Rows = list[dict[str, Any]]


class Results:
    """Rows by task, in the work folder or in a Parquet file."""

    def __init__(self, work: Path, committed: Path) -> None:
        self._committed = committed
        self._parts = work / "parts"
        self._parts.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, Rows] = {}
        if committed.exists():
            for key, group in pd.read_parquet(committed).groupby("task", sort=False):
                self._rows[str(key)] = group.to_dict("records")  # type: ignore[assignment]
        for part in self._parts.glob("*.json"):
            self._rows[part.stem] = json.loads(part.read_text())

    def __contains__(self, task: Task) -> bool:
        return task.key in self._rows

    def rows(self, task: Task) -> Rows:
        """A finished task's rows, one per child."""
        return self._rows[task.key]

    def losses(self, task: Task, column: str = "loss_nats") -> list[float]:
        """A finished task's losses in nats, in the order of its children."""
        found = {row["architecture"]: row[column] for row in self.rows(task)}
        return [found[child] for child in task.children]

    def add(self, task: Task, rows: Rows) -> None:
        """Keep a task's rows, whole or not at all."""
        part = self._parts / f"{task.key}.json"
        part.with_suffix(".part").write_text(json.dumps(rows))
        part.with_suffix(".part").rename(part)
        self._rows[task.key] = rows

    def write(self, tasks: Sequence[Task]) -> None:
        """The rows of these tasks, as far as there are any, to the Parquet file."""
        rows = [row for task in tasks if task in self for row in self.rows(task)]
        if not rows:
            return
        self._committed.parent.mkdir(exist_ok=True)
        aside = self._committed.with_suffix(".part")
        pd.DataFrame(rows).to_parquet(aside, index=False)
        aside.rename(self._committed)


def run_tasks(tasks: Sequence[Task], results: Results, data: Path, *, workers: int) -> None:
    """Run what has no result yet, in the order given.

    A task that fails costs no other: all run, then the first error is raised.
    """
    todo = [task for task in tasks if task not in results]
    if not todo:
        return
    context = multiprocessing.get_context("spawn")
    errors = []
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        running = {pool.submit(run_task, task, str(data)): task for task in todo}
        done = tqdm(as_completed(running), total=len(tasks), initial=len(tasks) - len(todo))
        try:
            for future in done:
                if error := future.exception():
                    errors.append(error)
                else:
                    results.add(running[future], future.result())
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise errors[0]
