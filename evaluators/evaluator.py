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

from evaluators.score import Score
from supernet.cost import CostModel
from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.loss import evaluate
from supernet.model import SuperNet, TextShape, meta_supernet
from supernet.space import Architecture, SearchSpace

Weights = Mapping[str, np.ndarray[Any, Any] | torch.Tensor]


class Evaluator:
    """Scores children of one super-net version on fixed batches.

    Args:
        weights: by the super-net's parameter names; arrays may be read-only.
        batches: what every child is scored on.
        version: of the weights, as it stands in the rows.

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
    ) -> None:
        self._space = space
        self._shape = shape
        self._device = device
        self._costs = CostModel(space, shape)
        self._batches = [batch.to(device) for batch in batches]
        self.load(weights, version)

    def load(self, weights: Weights, version: str) -> None:
        """Score with these weights from now on; the ones before are released."""
        self.model = _assign(self._space, self._shape, weights).to(self._device).eval()
        self.version = version

    def score(self, architecture: Architecture) -> Score:
        """One child's score; a child that fails has its error in there.

        Raises:
            InvalidInput: if the architecture is not one of the space's.
        """
        self._space.check(architecture)
        began = time.perf_counter()
        loss_nats, accuracy, error = self._evaluate(architecture)
        cost = self._costs.cost(architecture)
        return Score(
            architecture=str(architecture),
            val_loss_nats=loss_nats,
            masked_accuracy=accuracy,
            num_params=cost.num_params,
            flops=cost.flops,
            wall_s=time.perf_counter() - began,
            supernet_version=self.version,
            error=error,
        )

    def _evaluate(
        self, architecture: Architecture
    ) -> tuple[float | None, float | None, str | None]:
        try:
            loss_nats, accuracy = evaluate(self.model, architecture, self._batches)
        except Exception as error:
            return None, None, f"{type(error).__name__}: {error}"
        if not math.isfinite(loss_nats):
            return None, None, f"the loss must be finite, but is {loss_nats}"
        return loss_nats, accuracy, None


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
