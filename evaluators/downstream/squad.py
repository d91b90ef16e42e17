"""SQuAD 1.1 and 2.0 as questions, from JSON files or the Hugging Face hub.

`squad_windows.py` makes a model's input of them, `squad_decoding.py` reads its output,
`squad_metric.py` scores.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.downstream.glue import find_folder, load_from_hub
from evaluators.downstream.tasks import Task
from supernet.errors import InvalidInput

TRAIN_SHARE = 0.6
"""Share of the articles that train where one file has both splits; our own choice."""


@dataclass(frozen=True)
class Answer:
    """A span of the context: its text, and the character at which it begins."""

    text: str
    start: int


@dataclass(frozen=True)
class Question:
    """A question about a context.

    Attributes:
        id: unique in its file.
        title: of the article.
        question: the question.
        context: the paragraph that may answer it.
        answers: the annotators'; none where the question cannot be answered.
        is_impossible: whether the context has no answer (SQuAD 2.0).
    """

    id: str
    title: str
    question: str
    context: str
    answers: tuple[Answer, ...]
    is_impossible: bool


def read_questions(task: Task, source: str | Path, split: str) -> list[Question]:
    """The questions of a split.

    SQuAD 2.0's `squad2_dev_5articles.json` serves for both splits: its first three articles train,
    the other two are dev.

    Args:
        task: squad or squad2.
        source: a folder with the task's files, or that has a folder `squad` with them; or "hub",
            or "hub:NAME" for a data set of another name or folder with the same columns.
        split: train or dev.

    Raises:
        InvalidInput: if there is no such split or file; and as `read_squad`.
    """
    if task.kind != "spans" or split not in task.splits:
        raise InvalidInput(
            f"questions are those of squad and squad2, splits train and dev; but got {task.name} "
            f"and {split!r}"
        )
    name, _, dataset = str(source).partition(":")
    if name == "hub":
        dataset = dataset or task.hub
        rows = load_from_hub(dataset, "", dict(task.hub_splits)[split])
        return _checked(task, list(_hub_questions(rows)), f"{split} of {dataset}")
    folder, layout = find_folder(task, Path(source))
    files = dict(layout.files)
    if not (path := folder / files[split]).is_file():
        raise InvalidInput(f"the {split} split of {task.name} must be in {path}; put it there")
    questions = read_squad(task, path)
    return _of_articles(questions, split) if files["train"] == files["dev"] else questions


def read_squad(task: Task, path: str | Path) -> list[Question]:
    """All questions of a JSON file in SQuAD's format.

    Raises:
        InvalidInput: if it is not JSON, lacks a key (named with its place), has no questions, an
            id twice, an answer that does not stand where it says; or, for squad, questions that
            cannot be answered.
    """
    try:
        content = json.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"SQuAD's file {path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # not UTF-8 is one, too
        raise InvalidInput(
            f"SQuAD's files are JSON in UTF-8, but {path} is not ({error}); get it again"
        ) from None
    return _checked(task, list(_file_questions(content, str(path))), str(path))


def _of_articles(questions: list[Question], split: str) -> list[Question]:
    titles = list(dict.fromkeys(question.title for question in questions))
    train = set(titles[: round(TRAIN_SHARE * len(titles))])
    return [question for question in questions if (question.title in train) == (split == "train")]


def _file_questions(content: Any, file: str) -> Iterator[Question]:
    for i, article in enumerate(_get(content, "data", list, file, "")):
        at = f"data[{i}]"
        title = str(article.get("title", "")) if isinstance(article, dict) else ""
        for j, paragraph in enumerate(_get(article, "paragraphs", list, file, at)):
            at_paragraph = f"{at}.paragraphs[{j}]"
            context = _get(paragraph, "context", str, file, at_paragraph)
            for k, qa in enumerate(_get(paragraph, "qas", list, file, at_paragraph)):
                yield _question(qa, title, context, file, f"{at_paragraph}.qas[{k}]")


def _question(qa: Any, title: str, context: str, file: str, at: str) -> Question:
    answers = [
        Answer(
            _get(answer, "text", str, file, f"{at}.answers[{i}]"),
            _get(answer, "answer_start", int, file, f"{at}.answers[{i}]"),
        )
        for i, answer in enumerate(_get(qa, "answers", list, file, at))
    ]
    return Question(
        id=_get(qa, "id", str, file, at),
        title=title,
        question=_get(qa, "question", str, file, at),
        context=context,
        answers=tuple(answers),
        is_impossible="is_impossible" in qa and _get(qa, "is_impossible", bool, file, at),
    )


def _get(value: Any, key: str, kind: type, file: str, at: str) -> Any:
    place = f"{at}.{key}" if at else key
    if not isinstance(value, dict) or key not in value:
        has = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise InvalidInput(f"SQuAD's format wants {place}, but {file} has there only {has}")
    if not isinstance(value[key], kind):
        found = type(value[key]).__name__
        raise InvalidInput(f"{place} must be of type {kind.__name__}, but in {file} it is {found}")
    return value[key]


def _hub_questions(rows: Any) -> Iterator[Question]:
    wanted = ("id", "title", "context", "question", "answers")
    if missing := [name for name in wanted if name not in rows.column_names]:
        raise InvalidInput(
            f"missing columns: SQuAD on the hub must have {missing}, but it has {rows.column_names}"
        )
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = tuple(Answer(text, start) for text, start in zip(texts, starts, strict=True))
        yield Question(
            row["id"], row["title"], row["question"], row["context"], answers, not answers
        )


def _checked(task: Task, questions: list[Question], where: str) -> list[Question]:
    if not questions:
        raise InvalidInput(f"SQuAD's data must have questions, but {where} has none")
    seen: set[str] = set()
    for question in questions:
        if fault := _fault(task, question, seen):
            raise InvalidInput(f"{fault}; mend or remove question {question.id!r} of {where}")
        seen.add(question.id)
    return questions


def _fault(task: Task, question: Question, seen: set[str]) -> str | None:
    """The rule that the question breaks."""
    if question.id in seen:
        return "an id must be unique, but one comes twice"
    if not question.context.strip() or not question.question.strip():
        return "a question and its context must have text, but one is empty"
    if question.is_impossible and task.name == "squad":
        return "all questions of SQuAD 1.1 have answers, but one has none (task squad2 takes such)"
    if question.is_impossible == bool(question.answers):
        return (
            "a question must have answers or be impossible, but one has "
            f"{len(question.answers)} answers and is_impossible={question.is_impossible}"
        )
    for answer in question.answers:
        found = question.context[max(answer.start, 0) :][: len(answer.text)]
        if answer.start < 0 or not answer.text.strip() or found != answer.text:
            return (
                f"an answer must stand in its context at answer_start, but {answer.text!r} is not "
                f"at {answer.start}, where {found!r} stands"
            )
    return None
