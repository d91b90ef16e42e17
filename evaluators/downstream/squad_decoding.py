"""Answers from a model's start and end logits: the n best spans over all windows of a question.

T: tokens of a window, C: those of its context, K: lengths of an answer in tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluators.downstream.squad import Question
from evaluators.downstream.squad_metric import check_complete, exact_match, f1
from evaluators.downstream.squad_windows import Window
from supernet.errors import InvalidInput

Floats = npt.NDArray[np.floating]
Span = tuple[int, int]
Logits = tuple[float, float]
"""Of start and end."""
Scorer = Callable[[str, str, Question], float]


@dataclass(frozen=True)
class Candidate:
    """An answer, or "" for none: its first character, logits and probability among the n best."""

    text: str
    start: int
    start_logit: float
    end_logit: float
    probability: float

    @property
    def logit(self) -> float:
        """Its score: the sum of the two."""
        return self.start_logit + self.end_logit


@dataclass(frozen=True)
class Prediction:
    """What a model says to a question.

    Attributes:
        id: of the question.
        text: the best span's text, whatever the score of having no answer.
        n_best: best first; with "" among them if the task has questions without an answer.
        null_odds: score of having no answer less that of the best span, in logits; infinite where
            the tokenizer makes nothing of the context.
    """

    id: str
    text: str
    n_best: tuple[Candidate, ...]
    null_odds: float


@dataclass(frozen=True)
class Threshold:
    """The null odds above which there is no answer, and the figure it gives where it was tuned."""

    null_odds: float
    metric: str
    tuned: float


def decode(
    questions: Sequence[Question],
    windows: Sequence[Window],
    start_logits: Sequence[Floats] | Floats,
    end_logits: Sequence[Floats] | Floats,
    *,
    n_best: int = 20,
    max_answer_tokens: int = 30,
    with_null: bool = False,
) -> list[Prediction]:
    """The predictions, one a question, in the questions' order.

    A span begins and ends at tokens of the context, and its score is the sum of their logits; one
    that is in two windows has the better of its scores. Having no answer has the sum of the two
    logits of `Window.cls`, the least over the windows. The search is exact: it is not limited, as
    BERT's is, to pairs of the n best starts and ends.

    Args:
        questions: all of them.
        windows: all of theirs, as `make_windows` gives them.
        start_logits: per window (T,) or longer, what is beyond T is padding.
        end_logits: likewise.
        n_best: spans that are kept of each question.
        max_answer_tokens: longest span.
        with_null: puts having no answer among the n best.

    Raises:
        InvalidInput: if logits are missing or not finite, or a question has no window.
    """
    if min(n_best, max_answer_tokens) < 1:
        raise InvalidInput(
            f"n_best and max_answer_tokens must be at least 1, but got {n_best=}, "
            f"{max_answer_tokens=}"
        )
    if not len(windows) == len(start_logits) == len(end_logits):
        raise InvalidInput(
            f"every window needs start and end logits, but got {len(windows)} windows, "
            f"{len(start_logits)} start and {len(end_logits)} end logits"
        )
    spans: list[dict[Span, Logits]] = [{} for _ in questions]
    nulls = [(float("inf"), 0.0)] * len(questions)
    for number, window in enumerate(windows):
        start_T = _checked(start_logits[number], window, number)
        end_T = _checked(end_logits[number], window, number)
        found = spans[window.question]
        for span, logits in _best_spans(window, start_T, end_T, n_best, max_answer_tokens):
            found[span] = max(logits, found.get(span, logits), key=sum)
        null = float(start_T[window.cls]), float(end_T[window.cls])
        nulls[window.question] = min(nulls[window.question], null, key=sum)
    return [
        _prediction(question, found, null, n_best, with_null=with_null)
        for question, found, null in zip(questions, spans, nulls, strict=True)
    ]


def answers(predictions: Sequence[Prediction], *, null_odds: float | None = None) -> dict[str, str]:
    """The text by question id, "" where the odds of having no answer are above the threshold.

    Args:
        predictions: as `decode` gives them.
        null_odds: the threshold; None always answers, as in SQuAD 1.1.
    """
    return {
        prediction.id: ""
        if null_odds is not None and prediction.null_odds > null_odds
        else prediction.text
        for prediction in predictions
    }


def best_threshold(
    questions: Sequence[Question], predictions: Sequence[Prediction], *, metric: str = "f1"
) -> Threshold:
    """The threshold with the best figure on these questions, which it is thereby tuned on.

    SQuAD 2.0's own script reports figures that are tuned on dev so ("best_f1"); say so with them.

    Args:
        questions: of SQuAD 2.0.
        predictions: for all of them.
        metric: f1 or exact_match.

    Raises:
        InvalidInput: if the metric is another, or the questions are not those of the predictions.
    """
    scorer = {"f1": f1, "exact_match": exact_match}.get(metric)
    if scorer is None:
        raise InvalidInput(f"a threshold is tuned for f1 or exact_match, but got {metric=}")
    said = {prediction.id: prediction for prediction in predictions}
    check_complete(questions, said)
    odds_N = np.array([said[question.id].null_odds for question in questions])
    gains_N = np.array([_gain(question, said, scorer) for question in questions])
    order_N = np.argsort(odds_N, kind="stable")
    unanswerable = sum(question.is_impossible for question in questions)
    totals_N = unanswerable + np.cumsum(gains_N[order_N])
    sorted_N = odds_N[order_N]
    last_of_ties_N = np.append(sorted_N[1:] > sorted_N[:-1], True)
    totals_N[~last_of_ties_N] = -np.inf
    best = int(totals_N.argmax())
    if totals_N[best] <= unanswerable:
        return Threshold(float(sorted_N[0]) - 1.0, metric, unanswerable / len(questions))
    return Threshold(float(sorted_N[best]), metric, float(totals_N[best]) / len(questions))


def _gain(question: Question, said: Mapping[str, Prediction], scorer: Scorer) -> float:
    """What answering the question adds to the total in which none is answered."""
    if question.is_impossible:
        return -1.0 if said[question.id].text else 0.0
    return scorer("squad2", said[question.id].text, question)


def _checked(logits: Floats, window: Window, number: int) -> Floats:
    """(T,) logits of the window without those of its padding."""
    logits_T = np.asarray(logits, np.float64)[: len(window.input_ids)]
    if logits_T.shape != window.input_ids.shape or not np.isfinite(logits_T).all():
        raise InvalidInput(
            f"a window of {len(window.input_ids)} tokens needs as many finite logits, but number "
            f"{number} has an array of {np.shape(logits)}, or some that are not finite"
        )
    return logits_T


def _best_spans(
    window: Window, start_T: Floats, end_T: Floats, n_best: int, max_answer_tokens: int
) -> list[tuple[Span, Logits]]:
    (context_C,) = np.nonzero(window.offsets[:, 0] >= 0)
    if not len(context_C):
        return []
    starts_C, ends_C = start_T[context_C], end_T[context_C]
    padded = np.concatenate([ends_C, np.full(max_answer_tokens - 1, -np.inf)])
    sums_CK = starts_C[:, None] + np.lib.stride_tricks.sliding_window_view(
        padded, max_answer_tokens
    )
    flat = sums_CK.ravel()
    best = np.argpartition(-flat, n_best - 1)[:n_best] if n_best < len(flat) else range(len(flat))
    spans = []
    for place in best:
        first, more = divmod(int(place), max_answer_tokens)
        if flat[place] > -np.inf:
            start = int(window.offsets[context_C[first], 0])
            end = int(window.offsets[context_C[first + more], 1])
            logits = float(starts_C[first]), float(ends_C[first + more])
            spans.append(((start, end), logits))
    return spans


def _prediction(
    question: Question, found: Mapping[Span, Logits], null: Logits, n_best: int, *, with_null: bool
) -> Prediction:
    if null[0] == float("inf"):
        raise InvalidInput(f"every question needs a window, but {question.id!r} has none")
    if not found:
        return Prediction(question.id, "", (Candidate("", -1, *null, 1.0),), float("inf"))
    best = sorted(found.items(), key=lambda item: (-sum(item[1]), item[0]))[:n_best]
    rows = [(question.context[start:end], start, logits) for (start, end), logits in best]
    odds = sum(null) - sum(rows[0][2])
    text = rows[0][0]
    if with_null:
        rows = sorted([*rows, ("", -1, null)], key=lambda row: -sum(row[2]))
    logits = np.array([sum(pair) for *_, pair in rows])
    weights = np.exp(logits - logits.max())
    candidates = tuple(
        Candidate(said, start, *pair, float(share))
        for (said, start, pair), share in zip(rows, weights / weights.sum(), strict=True)
    )
    return Prediction(question.id, text, candidates, odds)
