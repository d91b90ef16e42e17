"""Scores child models with the weights that they inherit from the super-net.

The weights are mapped, not copied, so many evaluators share one set. No Ray in here.
"""

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evaluators.prefix_tree import evaluate_together, prefix_tree
from evaluators.score import Score
from supernet.cost import CostModel
from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.loss import as_scored
from supernet.model import SuperNet, TextShape, meta_supernet
from supernet.space import Architecture, SearchSpace

Weights = Mapping[str, np.ndarray[Any, Any] | torch.Tensor]


class Evaluator:
    """Scores children of one super-net version on fixed batches.

    Args:
        weights: by the super-net's parameter names; arrays may be read-only.
        batches: what every child is scored on; for replaced tokens they are first corrupted by
            the generator of the weights, once per version.
        version: of the weights, as it stands in the rows.
        costs: of the children; none: those by formula.

    Raises:
        InvalidInput: if the weights are not those of this space and shape.
    """

    def __init__(
        self,
        space: SearchSpace,
        shape: TextShape,
        weights: Weights,
        batches: Sequence[Batch],
        *,
        version: str,
        device: str = "cpu",
        costs: CostModel | None = None,
    ) -> None:
        self._space = space
        self._shape = shape
        self._device = device
        self._costs = costs or CostModel(space, shape)
        self._batches = [batch.to(device) for batch in batches]
        self.peak_activation_mib = 0.0
        """Most memory that hidden states took at once, in MiB."""
        self.load(weights, version)

    def load(self, weights: Weights, version: str) -> None:
        """Score with these weights from now on; the ones before are released."""
        self.model = _assign(self._space, self._shape, weights).to(self._device).eval()
        self._seen = as_scored(self.model, self._batches)
        self.version = version

    def score(self, architecture: Architecture) -> Score:
        """One child's score; a child that fails has its error in there.

        Raises:
            InvalidInput: if the architecture is not one of the space's.
        """
        return self.score_together([architecture])[0]

    def score_together(self, architectures: Sequence[Architecture]) -> list[Score]:
        """The scores of several children, which share what their paths have in common.

        Each score is what `score` gives, but for `wall_s`: a child's share of the time of all.

        Raises:
            InvalidInput: if an architecture is not one of the space's.
        """
        for architecture in architectures:
            self._space.check(architecture)
        self._note_activation(prefix_tree(architectures).live)
        began = time.perf_counter()
        found = evaluate_together(self.model, architectures, self._seen)
        wall_s = (time.perf_counter() - began) / max(len(architectures), 1)
        return [
            self._score(architecture, means, wall_s)
            for architecture, means in zip(architectures, found, strict=True)
        ]

    def rows(self, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
        """`score_together` as rows."""
        return [score.to_row() for score in self.score_together(architectures)]

    def _note_activation(self, live: int) -> None:
        tokens = max(batch.input_ids_BT.numel() for batch in self._batches)
        mib = live * tokens * self.model.chain.widest * 4 / 2**20
        self.peak_activation_mib = max(self.peak_activation_mib, mib)

    def _score(
        self, architecture: Architecture, found: tuple[float, float] | str, wall_s: float
    ) -> Score:
        loss_nats, accuracy, error = None, None, None
        if isinstance(found, str):
            error = found
        elif not math.isfinite(found[0]):
            error = f"the loss must be finite, but is {found[0]}"
        else:
            loss_nats, accuracy = found
        cost = self._costs.cost(architecture)
        return Score(
            architecture=str(architecture),
            val_loss_nats=loss_nats,
            masked_accuracy=accuracy,
            num_params=cost.num_params,
            flops=cost.flops,
            wall_s=wall_s,
            supernet_version=self.version,
            error=error,
            latency_ms=cost.latency_ms,
        )


def _assign(space: SearchSpace, shape: TextShape, weights: Weights) -> SuperNet:
    tensors = {name: _view(array) for name, array in weights.items()}
    model = _load(meta_supernet(space, shape), tensors)
    if any(buffer.is_meta for buffer in model.buffers()):
        # A user's operator keeps a table that is no weight: only a real super-net computes it.
        model = _load(SuperNet(space, shape), tensors)
    return model


def _load(model: SuperNet, tensors: dict[str, torch.Tensor]) -> SuperNet:
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise InvalidInput(f"the weights are of another space or shape: {error}") from None
    return model


def _view(array: np.ndarray[Any, Any] | torch.Tensor) -> torch.Tensor:
    """A tensor over the same memory; nothing here writes to it, so read-only memory will do."""
    if isinstance(array, torch.Tensor):
        return array
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
