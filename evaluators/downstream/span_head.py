"""A question about a context, to a span of it (SQuAD), for one model's tokenizer."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from evaluators.downstream.heads import Features, Predict, TaskData
from evaluators.downstream.metrics import headline
from evaluators.downstream.squad_decoding import (
    Candidate,
    Prediction,
    answers,
    best_threshold,
    decode,
)
from evaluators.downstream.squad_metric import score_squad, trivial_squad
from evaluators.downstream.squad_windows import Window, make_windows

_MOST = 1e30


class SpanHead:
    """Questions in windows; see `evaluators.downstream.squad_windows`.

    Args:
        stride, max_question_tokens: see `evaluators.downstream.squad_windows.make_windows`.
        n_best, max_answer_tokens: see `evaluators.downstream.squad_decoding.decode`.
        no_answer_threshold: null odds above which there is no answer (SQuAD 2.0); None: the best on
            dev, as the official script's "best" figures have it.
    """

    def __init__(
        self,
        data: TaskData,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        stride: int,
        max_question_tokens: int,
        n_best: int,
        max_answer_tokens: int,
        no_answer_threshold: float | None,
    ) -> None:
        self.tokenizer = tokenizer
        self._data = data
        self._n_best, self._max_answer_tokens = n_best, max_answer_tokens
        self._threshold = no_answer_threshold
        self._windows, dev = (
            make_windows(
                questions,
                tokenizer,
                max_length=max_length,
                stride=stride,
                max_question_tokens=max_question_tokens,
            )
            for questions in (data.train, data.dev["dev"])
        )
        self._dev_windows: Sequence[Window] = dev
        self.train_features: Features = [_feature(w, labels=True) for w in self._windows]
        self.dev_features: Features = [_feature(w, labels=False) for w in dev]
        self.truncated = len(self._windows) - len(data.train)
        """Windows beyond one per training question."""

    def scores(self, outputs: list[torch.Tensor]) -> dict[str, float]:
        """exact_match and f1, and for SQuAD 2.0 the threshold and figures with and without answer.

        Args:
            outputs: per window, start and end logits (T, 2).
        """
        found = self._decode(outputs)
        odds = self._odds(found)
        scores = score_squad(self._data.task, self._data.dev["dev"], answers(found, null_odds=odds))
        return scores if odds is None else {**scores, "null_odds": odds}

    def headline(self, scores: Mapping[str, float]) -> float:
        """F1."""
        return headline(self._data.task, dict(scores))

    @cached_property
    def trivial(self) -> float:
        """See `trivial_squad`."""
        data = self._data
        return self.headline(trivial_squad(data.task, data.train, data.dev["dev"]).scores)

    def predictions(self, outputs: list[torch.Tensor], predict: Predict) -> dict[str, Any]:
        """Of the dev split, for the test split is not public, as the official scripts read them.

        "predictions": text by question id; "nbest_predictions": texts, probabilities and logits,
        best first, by id; and for SQuAD 2.0 "null_odds" by id.
        """
        found = self._decode(outputs)
        odds = self._odds(found)
        files: dict[str, Any] = {
            "predictions": answers(found, null_odds=odds),
            "nbest_predictions": {
                said.id: [_written(candidate) for candidate in said.n_best] for said in found
            },
        }
        if odds is not None:
            files["null_odds"] = {said.id: _finite(said.null_odds) for said in found}
        return files

    def _decode(self, outputs: list[torch.Tensor]) -> list[Prediction]:
        logits = [output.numpy() for output in outputs]
        return decode(
            self._data.dev["dev"],
            self._dev_windows,
            [logits_T2[:, 0] for logits_T2 in logits],
            [logits_T2[:, 1] for logits_T2 in logits],
            n_best=self._n_best,
            max_answer_tokens=self._max_answer_tokens,
            with_null=self._with_null,
        )

    def _odds(self, found: Sequence[Prediction]) -> float | None:
        """The threshold above which there is no answer; None where there always is one."""
        if not self._with_null or self._threshold is not None:
            return self._threshold if self._with_null else None
        return _finite(best_threshold(self._data.dev["dev"], found).null_odds)

    @property
    def _with_null(self) -> bool:
        return self._data.task.name == "squad2"


def _written(candidate: Candidate) -> dict[str, Any]:
    return {
        "text": candidate.text,
        "probability": candidate.probability,
        "start_logit": candidate.start_logit,
        "end_logit": candidate.end_logit,
    }


def _finite(odds: float) -> float:
    """JSON has no infinity, which stands for a context of which the tokenizer makes nothing."""
    return min(max(odds, -_MOST), _MOST)


def _feature(window: Window, *, labels: bool) -> dict[str, Any]:
    feature: dict[str, Any] = {
        "input_ids": window.input_ids.tolist(),
        "attention_mask": [1] * len(window.input_ids),
    }
    if window.token_type_ids is not None:
        feature["token_type_ids"] = window.token_type_ids.tolist()
    if labels:
        feature |= {"start_positions": window.start, "end_positions": window.end}
    return feature
