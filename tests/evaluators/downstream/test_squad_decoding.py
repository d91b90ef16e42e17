"""Logits become the n best spans over all windows; the threshold for having no answer is tuned."""

import dataclasses
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from evaluators.downstream.squad import Answer, Question, read_questions
from evaluators.downstream.squad_decoding import (
    Prediction,
    Threshold,
    answers,
    best_threshold,
    decode,
)
from evaluators.downstream.squad_metric import exact_match, score_squad
from evaluators.downstream.squad_windows import Window, make_windows
from evaluators.downstream.tasks import TASKS
from supernet.errors import InvalidInput

Floats = npt.NDArray[np.float64]
CONTEXT = "ab cd ef gh ij kl mn op"


def question(answer: str | None = "gh", id: str = "q") -> Question:
    found = () if answer is None else (Answer(answer, CONTEXT.index(answer)),)
    return Question(id, "t", "who?", CONTEXT, found, not found)


def windows_of(questions: Sequence[Question], tokenizer: Any) -> list[Window]:
    return make_windows(questions, tokenizer, max_length=14, stride=3, max_question_tokens=4)


def perfect(windows: Sequence[Window]) -> tuple[list[Floats], list[Floats]]:
    """Logits of 10 at the labels, 0 elsewhere, three places of padding with 99."""
    pairs = []
    for window in windows:
        logits = [np.append(np.zeros(len(window.input_ids)), [99.0] * 3) for _ in range(2)]
        logits[0][window.start] = logits[1][window.end] = 10
        pairs.append(logits)
    return [start for start, _ in pairs], [end for _, end in pairs]


def test_the_best_spans_are_those_of_a_search_over_all_pairs(letters: Any) -> None:
    windows = windows_of([question()], letters)
    rng = np.random.default_rng(0)
    starts, ends = ([rng.normal(size=len(w.input_ids)) for w in windows] for _ in range(2))
    wanted: dict[tuple[int, int], float] = {}
    for window, start_T, end_T in zip(windows, starts, ends, strict=True):
        for first, last in product(range(len(start_T)), repeat=2):
            inside = window.offsets[first, 0] >= 0 and window.offsets[last, 0] >= 0
            if inside and first <= last < first + 4:
                span = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                wanted[span] = max(wanted.get(span, -np.inf), start_T[first] + end_T[last])
    best = sorted(wanted.items(), key=lambda item: -item[1])[:5]
    (found,) = decode([question()], windows, starts, ends, n_best=5, max_answer_tokens=4)
    assert [(row.text, row.start) for row in found.n_best] == [
        (CONTEXT[start:end], start) for (start, end), _ in best
    ]
    assert [row.logit for row in found.n_best] == pytest.approx([logit for _, logit in best])
    assert sum(row.probability for row in found.n_best) == pytest.approx(1.0)
    assert found.n_best[0].probability / found.n_best[1].probability == pytest.approx(
        np.exp(best[0][1] - best[1][1])
    )
    null = min(start[0] + end[0] for start, end in zip(starts, ends, strict=True))
    assert found.null_odds == pytest.approx(null - best[0][1])


def test_having_no_answer_stands_among_the_n_best_and_wins_above_the_threshold(
    letters: Any,
) -> None:
    questions = [question("gh", "yes"), question(None, "no")]
    windows = windows_of(questions, letters)
    yes, no = decode(questions, windows, *perfect(windows), with_null=True)
    assert (yes.text, yes.null_odds, yes.n_best[0].text) == ("gh", -20.0, "gh")
    assert (no.null_odds, no.n_best[0].text, no.n_best[0].start) == (20.0, "", -1)
    assert no.text != ""
    assert len(yes.n_best) == 21 and [row.text for row in yes.n_best].count("") == 1
    assert answers([yes, no], null_odds=0.0) == {"yes": "gh", "no": ""}
    assert answers([yes, no]) == {"yes": "gh", "no": no.text}
    assert answers([no], null_odds=20.0) == {"no": no.text}


def test_spans_longer_than_allowed_are_never_said(letters: Any) -> None:
    windows = windows_of([question("ef gh")], letters)
    (found,) = decode([question("ef gh")], windows, *perfect(windows), max_answer_tokens=3)
    assert max(len(row.text.replace(" ", "")) for row in found.n_best) == 3
    (found,) = decode([question("ef gh")], windows, *perfect(windows), max_answer_tokens=4)
    assert found.text == "ef gh"


def test_a_context_without_tokens_has_no_answer(letters: Any) -> None:
    odd = dataclasses.replace(question(), context="\u0000\ufffd")
    windows = windows_of([odd], letters)
    (found,) = decode([odd], windows, *perfect(windows))
    assert (found.text, found.null_odds) == ("", float("inf"))


def test_logits_that_do_not_fit_are_refused(letters: Any) -> None:
    windows = windows_of([question()], letters)
    starts, ends = perfect(windows)
    with pytest.raises(InvalidInput, match="got 4 windows, 3 start and 4 end logits"):
        decode([question()], windows, starts[1:], ends)
    with pytest.raises(InvalidInput, match="14 tokens needs as many finite logits, but number 0"):
        decode([question()], windows, [starts[0][:5], *starts[1:]], ends)
    starts[1][2] = np.nan
    with pytest.raises(InvalidInput, match="number 1 has .* not finite"):
        decode([question()], windows, starts, ends)
    with pytest.raises(InvalidInput, match="needs a window, but 'other' has none"):
        decode([question(), question(id="other")], windows, ends, ends)
    with pytest.raises(InvalidInput, match="n_best=0"):
        decode([question()], windows, ends, ends, n_best=0)


def said(id: str, text: str, null_odds: float) -> Prediction:
    return Prediction(id, text, (), null_odds)


@pytest.mark.parametrize("metric", ["f1", "exact_match"])
def test_the_best_threshold_is_that_of_a_search_over_all(metric: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(30):
        questions = [question("gh ij" if rng.random() < 0.6 else None, str(i)) for i in range(12)]
        predictions = [
            said(q.id, str(rng.choice(["gh ij", "gh", "op"])), float(rng.integers(-3, 4)))
            for q in questions
        ]
        found = best_threshold(questions, predictions, metric=metric)
        every = {
            odds: score_squad(TASKS["squad2"], questions, answers(predictions, null_odds=odds))
            for odds in (*range(-4, 4), found.null_odds)
        }
        assert found.tuned == pytest.approx(every[found.null_odds][metric])
        assert found.tuned == pytest.approx(max(scores[metric] for scores in every.values()))


def test_a_threshold_may_say_that_nothing_has_an_answer() -> None:
    questions = [question(None, "a"), question("gh", "b")]
    predictions = [said("a", "op", -5.0), said("b", "op", 1.0)]
    assert best_threshold(questions, predictions) == Threshold(-6.0, "f1", 0.5)
    with pytest.raises(InvalidInput, match="tuned for f1 or exact_match, but got metric='accuracy"):
        best_threshold(questions, predictions, metric="accuracy")
    with pytest.raises(InvalidInput, match="1 of 2 have none, the first is 'a'"):
        best_threshold(questions, predictions[1:])


@pytest.mark.parametrize(("name", "inside_a_word"), [("squad", 1), ("squad2", 0)])
def test_perfect_logits_decode_to_the_answers_of_real_questions(
    name: str, inside_a_word: int, data_folder: Path, bert: Any
) -> None:
    task = TASKS[name]
    questions = read_questions(task, data_folder, "dev")
    windows = make_windows(questions, bert, max_length=192, stride=64)
    predictions = decode(questions, windows, *perfect(windows), max_answer_tokens=64)
    texts = answers(predictions, null_odds=0.0 if name == "squad2" else None)
    wrong = [q for q in questions if not exact_match(name, texts[q.id], q)]
    assert len(wrong) == inside_a_word  # an annotator's answer ends within "2,700"
    assert all(q.answers[0].text in texts[q.id] for q in wrong)
    assert score_squad(task, questions, texts)["f1"] > 0.999
