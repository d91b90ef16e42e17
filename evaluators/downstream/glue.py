"""GLUE's tasks as examples, from files in their original formats or the Hugging Face hub."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, overload

from evaluators.downstream.tables import Row, read_rows
from evaluators.downstream.tasks import Layout, Task
from supernet.errors import InvalidInput

LabelledSplit = Literal["train", "dev", "dev_mm"]
TestSplit = Literal["test", "test_mm"]
MAX_SIMILARITY = 5.0
"""STS-B's labels go from 0 to this."""


@dataclass(frozen=True)
class Example:
    """One row of a task.

    Attributes:
        text_a: the sentence, or the first of two.
        text_b: the second one, None where the task has one.
        label: class number, similarity (STS-B), or None in a test split.
        idx: number of the row in its split, from 0.
    """

    text_a: str
    text_b: str | None
    label: int | float | None
    idx: int


@overload
def read_split(task: Task, source: str | Path, split: LabelledSplit) -> list[Example]: ...


@overload
def read_split(task: Task, source: str | Path, split: TestSplit) -> list[Example] | None: ...


@overload
def read_split(task: Task, source: str | Path, split: str) -> list[Example] | None: ...


def read_split(task: Task, source: str | Path, split: str) -> list[Example] | None:
    """The examples of a split; None for a test split that the local folder does not have.

    MRPC in its original files has no dev split: its test file stands in. MNLI as three small files
    (`snli.tsv`, `mnli_matched.tsv`, `mnli_mismatched.tsv`) trains on SNLI, the same labels for
    captions of images, so that all of MNLI's rows are left to judge by; its scores do not compare
    with those of models that were trained on MNLI.

    Args:
        task: one of GLUE's.
        source: a folder with the task's files, or with the folders of several tasks; or "hub",
            or "hub:NAME" for a data set of another name or folder with the same columns.
        split: train, dev or test; MNLI has also dev_mm and test_mm (mismatched).

    Raises:
        InvalidInput: if the task has no such split, files or columns are missing, or a row has
            the wrong number of fields or a label that the task does not have.
    """
    if task.kind == "spans" or split not in task.splits:
        known = "none in GLUE" if task.kind == "spans" else ", ".join(task.splits)
        raise InvalidInput(f"a split of {task.name} must be one of: {known}; but got {split!r}")
    name, _, dataset = str(source).partition(":")
    if name == "hub":
        return _from_hub(task, dataset or task.hub, split)
    folder, layout = find_folder(task, Path(source))
    return _from_folder(task, folder, layout, split)


def find_folder(task: Task, source: Path) -> tuple[Path, Layout]:
    """The folder with the task's files, at or in the source, and how it is laid out.

    Raises:
        InvalidInput: if there is none; the message has what is there.
    """
    inside = _names_in(source)
    subfolders = (name for pattern in task.folders for name in inside if fnmatchcase(name, pattern))
    for folder in (*(source / name for name in subfolders), source):
        for layout in task.layouts:
            if any((folder / name).is_file() for name in _labelled_files(layout)):
                return folder, layout
    files = [" and ".join(dict.fromkeys(_labelled_files(layout))) for layout in task.layouts]
    raise InvalidInput(
        f"{task.name} needs a folder with {', or with '.join(files)}, or with a folder "
        f"{task.folders[0]} that has them, but {source} holds {_some(inside)}"
    )


def _labelled_files(layout: Layout) -> list[str]:
    return [name for split, name in layout.files if not split.startswith("test")]


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InvalidInput(
            f'a task\'s source must be a folder or "hub", but {folder} cannot be read '
            f"({error.strerror}); name the folder with the task's files"
        ) from None


def _some(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{names[:most]}{more}" if names else "nothing"


def _from_folder(task: Task, folder: Path, layout: Layout, split: str) -> list[Example] | None:
    test = split.startswith("test")
    path = folder / dict(layout.files).get(split, "")
    if not path.is_file():
        if test:
            return None
        raise InvalidInput(
            f"the {split} split of {task.name} must be in {path}, but {folder} holds "
            f"{_some(_names_in(folder))}"
        )
    wanted = task.texts if test else (*task.texts, task.label)
    columns = () if test else layout.columns
    rows = read_rows(path, wanted, columns=columns, broken=0.0 if test else task.broken_rows)
    return [_example(task, row, path, idx) for idx, row in enumerate(rows)]


def _example(task: Task, row: Row, path: Path, idx: int) -> Example:
    texts = row.fields[: len(task.texts)]
    written = row.fields[len(task.texts) :]
    label = _label(task, written[0], f"line {row.line} of {path}") if written else None
    return Example(texts[0], texts[1] if len(texts) > 1 else None, label, idx)


def _label(task: Task, written: str, where: str) -> int | float:
    if task.kind == "classification":
        if written in task.labels:
            return task.labels.index(written)
        allowed = f"one of {list(task.labels)}"
    else:
        allowed = f"a number from 0 to {MAX_SIMILARITY:g}"
        try:
            if 0 <= float(written) <= MAX_SIMILARITY:
                return float(written)
        except ValueError:
            pass
    raise InvalidInput(f"a label of {task.name} must be {allowed}, but {where} has {written!r}")


def _from_hub(task: Task, dataset: str, split: str) -> list[Example]:
    """Like the files' rows; the hub's class numbers are those of `Task.labels`."""
    rows = load_from_hub(dataset, task.hub_configuration, dict(task.hub_splits)[split])
    columns = list(rows.column_names)
    wanted = (*task.hub_texts, "label")
    if missing := [name for name in wanted if name not in columns]:
        raise InvalidInput(
            f"missing columns: {dataset} must have {missing} for {task.name}, but has {columns}"
        )
    where = f"{split} of {dataset}"
    return list(_hub_examples(task, rows, where, labelled=not split.startswith("test")))


def _hub_examples(task: Task, rows: Any, where: str, *, labelled: bool) -> Iterable[Example]:
    for idx, row in enumerate(rows):
        texts = [row[name] for name in task.hub_texts]
        label = _hub_label(task, row["label"], f"row {idx} of {where}") if labelled else None
        yield Example(texts[0], texts[1] if len(texts) > 1 else None, label, idx)


def _hub_label(task: Task, value: Any, where: str) -> int | float:
    if task.kind == "regression":
        return _label(task, str(value), where)
    if isinstance(value, int) and 0 <= value < task.num_labels:
        return value
    raise InvalidInput(
        f"a label of {task.name} must be a class from 0 to {task.num_labels - 1}, but {where} "
        f"has {value!r}"
    )


def load_from_hub(dataset: str, configuration: str, split: str) -> Any:
    """A split of a data set, as `datasets` gives it.

    Raises:
        InvalidInput: if the hub does not give it.
    """
    from datasets import load_dataset

    try:
        return load_dataset(dataset, configuration or None, split=split)
    except Exception as error:  # the hub's client raises many kinds
        raise InvalidInput(
            f"the hub did not give the {split} split of {dataset} {configuration} "
            f"({type(error).__name__}: {error}); check the name and the network, or name a "
            "folder with the task's files"
        ) from error
