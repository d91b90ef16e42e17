"""Children scored by a short fine-tuning on a downstream task, from the weights that they inherit.

Around `Evaluator`, whose rows get one score more. No Ray in here.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from evaluators.downstream.finetuning import Recipe, finetune
from evaluators.downstream.heads import SentenceHead, TaskData
from evaluators.evaluator import Evaluator, Weights
from supernet.child_model import child_classifier
from supernet.errors import TrainingDiverged
from supernet.model import SuperNet
from supernet.space import Architecture


@dataclass(frozen=True)
class ShortFinetuning:
    """How every child is fine-tuned.

    Attributes:
        recipe: `max_steps` must be set; it is the length of the training, and `seed` the first.
        seeds: fine-tunings of a child, whose scores' mean counts; they share the batches, and
            differ in their heads and dropout.
        max_length: tokens of an input; longer ones are cut.
        pooling: "cls" or "mean": what the head reads.
    """

    recipe: Recipe
    seeds: int
    max_length: int
    pooling: str


class FinetunedScorer:
    """Rows of an evaluator with `finetuned_score` and `finetune_s` in them.

    A child's score depends on the child, the weights and the settings alone: each begins with the
    same head and sees the same batches in the same order.

    Args:
        inherited: gives the weights and the rest of the row.
        data: of a sentence task, train and dev as small as they are to be.
    """

    def __init__(
        self,
        inherited: Evaluator,
        data: TaskData,
        tokenizer: PreTrainedTokenizerBase,
        settings: ShortFinetuning,
    ) -> None:
        self._inherited = inherited
        self._task = data.task
        self._settings = settings
        data = replace(data, train=in_passes(data.train, settings.recipe), test={})
        self._head = SentenceHead(data, tokenizer, max_length=settings.max_length)

    @property
    def peak_activation_mib(self) -> float:
        """Most memory that hidden states took at once while children were scored together."""
        return self._inherited.peak_activation_mib

    @property
    def version(self) -> str:
        """Of the weights."""
        return self._inherited.version

    def load(self, weights: Weights, version: str) -> None:
        """As `Evaluator.load`."""
        self._inherited.load(weights, version)

    def rows(self, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
        """The evaluator's rows; a child whose fine-tuning diverges has the error in its row."""
        rows = self._inherited.rows(architectures)
        return [
            row if row["error"] else row | self._measured(architecture, row["wall_s"])
            for architecture, row in zip(architectures, rows, strict=True)
        ]

    def _measured(self, architecture: Architecture, wall_s: float) -> dict[str, Any]:
        began, score, error = time.perf_counter(), None, None
        try:
            score = self._score(architecture)
        except TrainingDiverged:
            error = (
                f"the outputs after a short fine-tuning on {self._task.name} must be finite, but "
                f"are not: it diverged; lower search.finetune.learning_rate"
            )
        except Exception as problem:
            error = f"{type(problem).__name__} in the short fine-tuning: {problem}"
        took_s = time.perf_counter() - began
        return {
            "finetuned_score": score,
            "finetune_s": took_s,
            "wall_s": wall_s + took_s,
            "error": error,
        }

    def _score(self, architecture: Architecture) -> float:
        first = self._settings.recipe
        recipes = [replace(first, seed=first.seed + n) for n in range(self._settings.seeds)]
        with _global_generators_kept():
            return mean(
                finetune(
                    self._classifier(architecture, recipe.seed), self._head, recipe, in_order=True
                ).headline
                for recipe in recipes
            )

    def _classifier(self, architecture: Architecture, seed: int) -> Any:
        model: SuperNet = self._inherited.model
        classifier = child_classifier(
            model.space,
            model.shape,
            architecture,
            self._weights(),
            num_labels=self._task.num_labels,
            pooling=self._settings.pooling,
            seed=seed,
        )
        device = next(model.parameters()).device
        return classifier.to(device)

    def _weights(self) -> Mapping[str, torch.Tensor]:
        return self._inherited.model.state_dict()


def in_passes(examples: Sequence[Any], recipe: Recipe) -> list[Any]:
    """As many examples as the training takes: passes over all of them, the last one in part.

    Each pass in an order of its own, drawn here and not while a child is trained, where it would
    hang on what the child has drawn for dropout by then.
    """
    assert recipe.max_steps is not None
    wanted = recipe.max_steps * recipe.batch_size
    rng = random.Random(f"passes:{recipe.seed}")
    taken: list[Any] = []
    while len(taken) < wanted:
        taken += rng.sample(list(examples), min(len(examples), wanted - len(taken)))
    return taken


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Fine-tuning seeds Python's, NumPy's and torch's; a searcher beside it may draw from them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
