"""A task's splits, from local files in their original formats or from the hub."""

from pathlib import Path

from evaluators.downstream.glue import find_folder, read_split
from evaluators.downstream.heads import TaskData
from evaluators.downstream.squad import read_questions
from evaluators.downstream.tasks import Task


def read_task(task: Task, source: str) -> TaskData:
    """Every split of a task that there is.

    Args:
        source: a folder, or "hub".

    Raises:
        InvalidInput: naming the file and line that breaks the format.
    """
    from_hub = source.partition(":")[0] == "hub"
    stand_in = "" if from_hub else find_folder(task, Path(source))[1].stand_in
    if task.kind == "spans":
        train, dev = (read_questions(task, source, split) for split in ("train", "dev"))
        return TaskData(task, train, {"dev": dev}, {}, from_hub, stand_in)
    test = {name: read_split(task, source, name) for name in task.splits if name.startswith("test")}
    return TaskData(
        task,
        read_split(task, source, "train"),
        {name: read_split(task, source, name) or [] for name in task.dev_splits},
        {name: examples for name, examples in test.items() if examples},
        from_hub,
        stand_in,
    )
