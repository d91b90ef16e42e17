"""A task's data, encoded for one model: what goes in, and what its outputs are worth."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from evaluators.downstream.glue import Example
from evaluators.downstream.metrics import headline, majority, score
from evaluators.downstream.tasks import Task

Features = Sequence[Mapping[str, Any]]
Predict = Callable[[Features], list[torch.Tensor]]
TEST_PREDICTIONS = "test_predictions"


@dataclass(frozen=True)
class TaskData:
    """A task's splits as they were read; `dev` and `test` by the names of their parts.

    MNLI has two of each, matched ("dev", "test") and mismatched ("dev_mm", "test_mm").
    `from_hub`: whether they are the hub's, rather than of local files; `stand_in`: as
    `Layout.stand_in`.
    """

    task: Task
    train: Sequence[Any]
    dev: Mapping[str, Sequence[Any]]
    test: Mapping[str, Sequence[Any]]
    from_hub: bool = False
    stand_in: str = ""

    @cached_property
    def digest(self) -> str:
        """Of what is trained and judged on."""
        return _digest([self.train, *(self.dev[name] for name in sorted(self.dev))])

    @cached_property
    def test_digest(self) -> str:
        """Of the test splits."""
        return _digest([self.test[name] for name in sorted(self.test)])


def _digest(parts: Sequence[Sequence[Any]]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(repr(part).encode())
    return found.hexdigest()[:16]


class TaskHead(Protocol):
    """What fine-tuning asks of a task.

    Attributes:
        truncated: training examples that were longer than the input; of spans, windows beyond
            one per question.
    """

    tokenizer: PreTrainedTokenizerBase
    truncated: int

    @property
    def train_features(self) -> Features:
        """Inputs of the model and its labels."""
        ...

    @property
    def dev_features(self) -> Features:
        """Inputs of the model, of all dev parts in a row."""
        ...

    def scores(self, outputs: list[torch.Tensor]) -> dict[str, float]:
        """The task's metrics from the model's outputs on `dev_features`."""
        ...

    def headline(self, scores: Mapping[str, float]) -> float:
        """The figure that stands for the task."""
        ...

    @property
    def trivial(self) -> float:
        """The headline of a rule that learns nothing of the inputs, for comparison."""
        ...

    def predictions(self, outputs: list[torch.Tensor], predict: Predict) -> dict[str, Any]:
        """What to keep beside the model, by file name without ".json".

        Args:
            outputs: the model's, on `dev_features`.
            predict: gives its outputs on other features.
        """
        ...


class SentenceHead:
    """A sentence or a pair of them, to a label or a number (GLUE)."""

    def __init__(
        self, data: TaskData, tokenizer: PreTrainedTokenizerBase, *, max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self._data = data
        self._max_length = max_length
        self.truncated = 0
        self.train_features = self._encode(data.train, labels=True)
        train_truncated, self.truncated = self.truncated, 0
        self._sizes = {name: len(examples) for name, examples in data.dev.items()}
        self.dev_features = [
            feature
            for examples in data.dev.values()
            for feature in self._encode(examples, labels=False)
        ]
        self.truncated = train_truncated

    def scores(self, outputs: list[torch.Tensor]) -> dict[str, float]:
        """The task's metrics; those of a second dev part end in its suffix ("accuracy_mm")."""
        found: dict[str, float] = {}
        start = 0
        for name, size in self._sizes.items():
            predicted = self._predictions(outputs[start : start + size])
            wanted = [example.label for example in self._data.dev[name]]
            suffix = name.removeprefix("dev")
            found |= {
                f"{metric}{suffix}": value
                for metric, value in score(self._data.task, predicted, wanted).items()
            }
            start += size
        return found

    def headline(self, scores: Mapping[str, float]) -> float:
        """As GLUE averages a task's metrics; that of the matched part for MNLI."""
        return headline(self._data.task, dict(scores))

    @cached_property
    def trivial(self) -> float:
        """What train says most, or on average (STS-B)."""
        data = self._data
        return self.headline(majority(data.task, data.train, data.dev["dev"]))

    def predictions(self, outputs: list[torch.Tensor], predict: Predict) -> dict[str, Any]:
        """Labels of the test splits as numbers, by split, and the splits' digest."""
        return {
            TEST_PREDICTIONS: {
                "data": self._data.test_digest,
                "predictions": {
                    name: self._predictions(predict(self._encode(examples, labels=False)))
                    for name, examples in self._data.test.items()
                },
            }
        }

    def _predictions(self, outputs: list[torch.Tensor]) -> list[float]:
        if self._data.task.kind == "regression":
            return [float(output[0]) for output in outputs]
        return [int(output.argmax()) for output in outputs]

    def _encode(self, examples: Sequence[Example], *, labels: bool) -> list[dict[str, Any]]:
        if not examples:
            return []
        texts = [example.text_a for example in examples]
        pairs = [example.text_b for example in examples]
        paired = pairs[0] is not None
        encoded = self.tokenizer(texts, pairs if paired else None)
        features = [
            {name: values[i] for name, values in encoded.items()} for i in range(len(examples))
        ]
        for i, feature in enumerate(features):
            if len(feature["input_ids"]) > self._max_length:
                self.truncated += 1
                features[i] = dict(
                    self.tokenizer(
                        texts[i],
                        pairs[i] if paired else None,
                        truncation=True,
                        max_length=self._max_length,
                    )
                )
        if labels:
            regression = self._data.task.kind == "regression"
            for feature, example in zip(features, examples, strict=True):
                label = example.label
                assert label is not None
                feature["labels"] = float(label) if regression else int(label)
        return features
