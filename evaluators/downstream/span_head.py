"""A question about a context, to a span of it (SQuAD), for one model's tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from evaluators.downstream.heads import Features, Predict, TaskData
from evaluators.downstream.metrics import headline
from evaluators.downstream.squad_decoding import answers, best_threshold, decode
from evaluators.downstream.squad_metric import score_squad
from evaluators.downstream.squad_windows import Window, make_windows


class SpanHead:
    """Questions in windows; see `evaluators.downstream.squad_windows`.

    Args:
        stride: tokens that two windows of a context share.
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
        n_best: int,
        max_answer_tokens: int,
        no_answer_threshold: float | None,
    ) -> None:
        self.tokenizer = tokenizer
        self._data = data
        self._n_best, self._max_answer_tokens = n_best, max_answer_tokens
        self._threshold = no_answer_threshold
        self._windows, dev = (
            make_windows(questions, tokenizer, max_length=max_length, stride=stride)
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
        questions, logits = self._data.dev["dev"], [output.numpy() for output in outputs]
        with_null = self._data.task.name == "squad2"
        predictions = decode(
            questions,
            self._dev_windows,
            [logits_T2[:, 0] for logits_T2 in logits],
            [logits_T2[:, 1] for logits_T2 in logits],
            n_best=self._n_best,
            max_answer_tokens=self._max_answer_tokens,
            with_null=with_null,
        )
        if not with_null:
            return score_squad(self._data.task, questions, answers(predictions))
        odds = self._threshold
        if odds is None:
            odds = best_threshold(questions, predictions).null_odds
        found = score_squad(self._data.task, questions, answers(predictions, null_odds=odds))
        return {**found, "null_odds": odds}

    def headline(self, scores: Mapping[str, float]) -> float:
        """F1."""
        return headline(self._data.task, dict(scores))

    def test_predictions(self, predict: Predict) -> dict[str, Any]:
        """SQuAD's test split is not public."""
        return {}


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
