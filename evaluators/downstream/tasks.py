"""The downstream tasks by name: what their files hold and how they are scored.

Data alone: `glue.py` and `squad.py` read the files, `metrics.py` scores.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from supernet.errors import InvalidInput

Kind = Literal["classification", "regression", "spans"]


@dataclass(frozen=True)
class Layout:
    """One way in which a task's folder is laid out.

    Attributes:
        files: (split, file name) of each split that the layout can have; train and dev in one
            file are divided by articles (SQuAD).
        columns: names of the columns of files that have no header; files of test splits
            always have one. Empty: all files have a header.
        stand_in: what takes the place of the task's own splits, if anything; such scores do not
            compare with others.
    """

    files: tuple[tuple[str, str], ...]
    columns: tuple[str, ...] = ()
    stand_in: str = ""


@dataclass(frozen=True)
class Task:
    """A downstream task.

    Attributes:
        name: as the command line takes it.
        kind: classification, regression (one number, STS-B) or spans (SQuAD).
        labels: the labels as the files write them, in the order of the hub's class numbers;
            empty unless a classification.
        label_names: what the labels mean, in the same order.
        texts: the files' columns of one or two texts.
        label: the files' column of the label.
        folders: names that the task's folder has in a folder of tasks; `*` at the end of one
            stands for anything.
        layouts: of a folder of files, tried in order.
        hub: dataset on the Hugging Face hub.
        hub_configuration: its configuration, empty for none.
        hub_texts: the hub's columns of the texts.
        hub_splits: (split, its name on the hub).
        metrics: names in the scores, the first one the headline.
        submissions: (test split, file name of its predictions on GLUE's leaderboard).
        broken_rows: share of a file's rows that may have a wrong number of fields; they are
            dropped with a warning. GLUE's own QQP is known to have a few.
    """

    name: str
    kind: Kind
    folders: tuple[str, ...]
    hub: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    label: str = "label"
    layouts: tuple[Layout, ...] = ()
    hub_configuration: str = ""
    hub_texts: tuple[str, ...] = ()
    hub_splits: tuple[tuple[str, str], ...] = ()
    submissions: tuple[tuple[str, str], ...] = ()
    broken_rows: float = 0.0

    @property
    def num_labels(self) -> int:
        """Outputs of the task's head: classes, 1 of a regression, 2 (start, end) of spans."""
        return {"classification": len(self.labels), "regression": 1, "spans": 2}[self.kind]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the task's splits, those included that local files often lack."""
        return tuple(split for split, _ in self.hub_splits)

    @property
    def dev_splits(self) -> tuple[str, ...]:
        """The splits to judge by: dev, for MNLI also dev_mm (mismatched)."""
        return tuple(split for split in self.splits if split.startswith("dev"))


_SPLITS = (("train", "train"), ("dev", "validation"), ("test", "test"))
_MNLI_SPLITS = (
    ("train", "train"),
    ("dev", "validation_matched"),
    ("dev_mm", "validation_mismatched"),
    ("test", "test_matched"),
    ("test_mm", "test_mismatched"),
)
_FILES = (("train", "train.tsv"), ("dev", "dev.tsv"), ("test", "test.tsv"))
_GLUE = Layout(_FILES)
_HEADLESS_COLA = Layout(_FILES, ("source", "label", "author_label", "sentence"))
_MSR_PARAPHRASE = Layout(
    (("train", "msr_paraphrase_train.txt"), ("dev", "msr_paraphrase_test.txt")),
    stand_in="dev: the test split",
)
_MNLI = Layout(
    (
        ("train", "train.tsv"),
        ("dev", "dev_matched.tsv"),
        ("dev_mm", "dev_mismatched.tsv"),
        ("test", "test_matched.tsv"),
        ("test_mm", "test_mismatched.tsv"),
    )
)
_MNLI_AND_SNLI = Layout(
    (("train", "snli.tsv"), ("dev", "mnli_matched.tsv"), ("dev_mm", "mnli_mismatched.tsv")),
    ("gold_label", "sentence1", "sentence2"),
    stand_in="train: SNLI",
)
_SQUAD = (
    Layout((("train", "train-v1.1.json"), ("dev", "dev-v1.1.json"))),
    Layout(
        (("train", "new_wiki_v1.0.json"), ("dev", "xquad.en.json")),
        stand_in="train: new_wiki, dev: XQuAD",
    ),
)
_SQUAD2 = (
    Layout((("train", "train-v2.0.json"), ("dev", "dev-v2.0.json"))),
    Layout(
        (("train", "squad2_dev_5articles.json"), ("dev", "squad2_dev_5articles.json")),
        stand_in="train and dev: articles of one file",
    ),
)
_PAIR = ("sentence1", "sentence2")


def _glue(
    name: str,
    folder: str,
    *,
    metrics: tuple[str, ...],
    texts: tuple[str, ...] = _PAIR,
    label: str = "label",
    labels: tuple[str, ...] = ("0", "1"),
    label_names: tuple[str, ...] = (),
    layouts: tuple[Layout, ...] = (_GLUE,),
    hub_texts: tuple[str, ...] = (),
    broken_rows: float = 0.0,
) -> Task:
    return Task(
        name=name,
        kind="classification" if labels else "regression",
        folders=(folder,),
        hub="nyu-mll/glue",
        metrics=metrics,
        labels=labels,
        label_names=label_names or labels,
        texts=texts,
        label=label,
        layouts=layouts,
        hub_configuration=name,
        hub_texts=hub_texts or texts,
        hub_splits=_SPLITS,
        submissions=(("test", f"{folder}.tsv"),),
        broken_rows=broken_rows,
    )


_ENTAILMENT = ("entailment", "not_entailment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue(
            "cola",
            "CoLA",
            metrics=("matthews",),
            texts=("sentence",),
            label_names=("unacceptable", "acceptable"),
            layouts=(_HEADLESS_COLA,),
        ),
        _glue(
            "sst2",
            "SST-2",
            metrics=("accuracy",),
            texts=("sentence",),
            label_names=("negative", "positive"),
        ),
        _glue(
            "mrpc",
            "MRPC",
            metrics=("f1", "accuracy"),
            texts=("#1 String", "#2 String"),
            label="Quality",
            label_names=("not_equivalent", "equivalent"),
            layouts=(_GLUE, _MSR_PARAPHRASE),
            hub_texts=_PAIR,
        ),
        _glue("stsb", "STS-B", metrics=("pearson", "spearman"), label="score", labels=()),
        _glue(
            "qqp",
            "QQP",
            metrics=("f1", "accuracy"),
            texts=("question1", "question2"),
            label="is_duplicate",
            label_names=("not_duplicate", "duplicate"),
            broken_rows=1e-3,
        ),
        Task(
            name="mnli",
            kind="classification",
            folders=("MNLI", "MNLI*"),
            hub="nyu-mll/glue",
            metrics=("accuracy",),
            labels=("entailment", "neutral", "contradiction"),
            label_names=("entailment", "neutral", "contradiction"),
            texts=_PAIR,
            label="gold_label",
            layouts=(_MNLI, _MNLI_AND_SNLI),
            hub_configuration="mnli",
            hub_texts=("premise", "hypothesis"),
            hub_splits=_MNLI_SPLITS,
            submissions=(("test", "MNLI-m.tsv"), ("test_mm", "MNLI-mm.tsv")),
        ),
        _glue(
            "qnli",
            "QNLI",
            metrics=("accuracy",),
            texts=("question", "sentence"),
            labels=_ENTAILMENT,
        ),
        _glue("rte", "RTE", metrics=("accuracy",), labels=_ENTAILMENT),
        Task(
            name="squad",
            kind="spans",
            folders=("squad", "SQuAD"),
            hub="rajpurkar/squad",
            metrics=("f1", "exact_match"),
            layouts=_SQUAD,
            hub_splits=_SPLITS[:2],
        ),
        Task(
            name="squad2",
            kind="spans",
            folders=("squad", "SQuAD"),
            hub="rajpurkar/squad_v2",
            metrics=("f1", "exact_match"),
            layouts=_SQUAD2,
            hub_splits=_SPLITS[:2],
        ),
    )
}
"""Every task by its name; `Task.labels` and the hub's class numbers agree."""


def task_named(name: str) -> Task:
    """The task of that name.

    Raises:
        InvalidInput: if there is none; the message has the nearest name and all of them.
    """
    if task := TASKS.get(name):
        return task
    near = difflib.get_close_matches(name.lower(), TASKS, n=1, cutoff=0.0)
    raise InvalidInput(
        f"a task must be one of {', '.join(TASKS)}, but got {name!r}; did you mean {near[0]!r}?"
    )
