"""Exact match and F1 as SQuAD's two official scripts define them, and a trivial baseline.

Figures are shares; the scripts print percentages.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from evaluators.downstream.squad import Question
from evaluators.downstream.tasks import Task
from supernet.errors import InvalidInput

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
FIRST_WORDS = (1, 2, 3, 5, 8, 12, 20)
MOST_TO_CHOOSE_BY = 1000


@lru_cache(maxsize=100_000)
def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words divided by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(task: str, text: str, question: Question) -> float:
    """1.0 if the text is one of the answers after normalising both, else 0.0.

    Args:
        task: squad or squad2; in the latter a question without an answer wants "".
        text: the prediction.
        question: with its answers.
    """
    said = normalise(text)
    return float(any(said == normalise(answer) for answer in _wanted(task, question)))


def f1(task: str, text: str, question: Question) -> float:
    """The best F1 of the text's words against an answer's, after normalising both.

    Two texts of which nothing is left have an F1 of 0.0 in SQuAD 1.1 and 1.0 in 2.0, as in their
    scripts. Arguments as for `exact_match`.
    """
    said = normalise(text).split()
    return max(
        _overlap(task, said, normalise(answer).split()) for answer in _wanted(task, question)
    )


def score_squad(
    task: Task, questions: Sequence[Question], predictions: Mapping[str, str]
) -> dict[str, float]:
    """`exact_match` and `f1`, means over the questions, each 1.0 at best.

    SQuAD 2.0 has them also of the questions with an answer (`has_answer_f1` …) and without
    (`no_answer_f1` …), where there are such.

    Args:
        task: squad or squad2.
        questions: all that count.
        predictions: text by question id; "" for no answer. Other ids are passed over.

    Raises:
        InvalidInput: if the task is not one of SQuAD's, or a question has no prediction.
    """
    if task.kind != "spans":
        raise InvalidInput(f"{task.name} is scored by evaluators.downstream.metrics")
    check_complete(questions, predictions)
    rows = [
        (
            question.is_impossible,
            exact_match(task.name, predictions[question.id], question),
            f1(task.name, predictions[question.id], question),
        )
        for question in questions
    ]
    scores = _means("", rows)
    if task.name == "squad2":
        scores |= _means("has_answer_", [row for row in rows if not row[0]])
        scores |= _means("no_answer_", [row for row in rows if row[0]])
    return scores


def check_complete(questions: Sequence[Question], predictions: Mapping[str, object]) -> None:
    """Checks that there are questions and a prediction for each.

    Raises:
        InvalidInput: if not.
    """
    missing = [question.id for question in questions if question.id not in predictions]
    if missing or not questions:
        raise InvalidInput(
            f"every question needs a prediction, but {len(missing)} of {len(questions)} have "
            f"none{f', the first is {missing[0]!r}' if missing else ''}"
        )


@dataclass(frozen=True)
class Trivial:
    """A baseline that learns nothing of questions: its rule and its scores."""

    rule: str
    scores: dict[str, float]


def trivial_squad(task: Task, train: Sequence[Question], dev: Sequence[Question]) -> Trivial:
    """The best of some rules on train (at most 1,000 questions, evenly spaced), scored on dev.

    The rules: the context's first 1 to 20 words, its first sentence, the sentence that shares
    most different words with the question; for SQuAD 2.0 also that there is no answer.

    Raises:
        InvalidInput: if there are no questions.
    """
    rules = _rules(task)
    some = train[:: max(1, -(-len(train) // MOST_TO_CHOOSE_BY))]
    figures = {
        name: score_squad(task, some, _by_rule(rule, some))["f1"] for name, rule in rules.items()
    }
    name = max(figures, key=figures.__getitem__)
    return Trivial(name, score_squad(task, dev, _by_rule(rules[name], dev)))


Rule = Callable[[Question], str]


def _by_rule(rule: Rule, questions: Sequence[Question]) -> dict[str, str]:
    return {question.id: rule(question) for question in questions}


def _rules(task: Task) -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        f"first {count} words": partial(_first_words, count) for count in FIRST_WORDS
    }
    rules["first sentence"] = lambda question: _sentences(question)[0]
    rules["sentence with most of the question's words"] = _most_alike
    if task.name == "squad2":
        rules["no answer"] = lambda question: ""
    return rules


def _first_words(count: int, question: Question) -> str:
    return " ".join(question.context.split()[:count])


def _sentences(question: Question) -> list[str]:
    return _SENTENCE_END.split(question.context.strip())


def _most_alike(question: Question) -> str:
    asked = set(normalise(question.question).split())
    return max(
        _sentences(question), key=lambda sentence: len(asked & set(normalise(sentence).split()))
    )


def _wanted(task: str, question: Question) -> Iterable[str]:
    """The answers that count; SQuAD 2.0 leaves out those of which normalising leaves nothing."""
    texts = [answer.text for answer in question.answers]
    if task == "squad2":
        return [text for text in texts if normalise(text)] or [""]
    return texts


def _overlap(task: str, said: list[str], wanted: list[str]) -> float:
    if task == "squad2" and not (said and wanted):
        return float(said == wanted)
    shared = sum((Counter(said) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def _means(prefix: str, rows: Sequence[tuple[bool, float, float]]) -> dict[str, float]:
    if not rows:
        return {}
    return {
        f"{prefix}exact_match": sum(row[1] for row in rows) / len(rows),
        f"{prefix}f1": sum(row[2] for row in rows) / len(rows),
    }
