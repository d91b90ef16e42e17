"""What moves the weights: the seam between the training loop and PyTorch or DeepSpeed.

`PlainEngine` is one process of plain PyTorch, for fast tests and `--local`; the product is
`supernet.deepspeed_engine`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch

from supernet.model import SuperNet
from supernet.path_adamw import PathAdamW
from supernet.settings import OptimiserSettings
from supernet.space import Architecture


class Engine(Protocol):
    """Backward passes and optimiser steps over one or more workers."""

    model: SuperNet
    rank: int
    world: int

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of this worker's share of the loss; shares are summed over workers."""
        ...

    def update(self, learning_rate: float) -> None:
        """Take the optimiser step with the gradients gathered since `begin`."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all workers."""
        ...

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights, whole, by name; to be called on every worker."""
        ...

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Optimiser state, whole, by "<state>/<parameter>"; to be called on every worker."""
        ...

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave."""
        ...


class PlainEngine:
    """One process of plain PyTorch."""

    rank = 0
    world = 1

    def __init__(self, model: SuperNet, settings: OptimiserSettings) -> None:
        self.model = model
        self._optimizer = PathAdamW(model, settings)

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        self._optimizer.on_path.begin(paths)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, learning_rate: float) -> None:
        """Clip, take the optimiser step, and forget the gradients."""
        self._optimizer.set_learning_rate(learning_rate)
        self._optimizer.step()

    def total(self, values: Sequence[float]) -> list[float]:
        """The values themselves: there is one worker."""
        return list(values)

    def weights(self) -> dict[str, torch.Tensor]:
        """Weights by name."""
        return dict(self.model.state_dict())

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Optimiser state by "<state>/<parameter>"."""
        return self._optimizer.own_state()

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave."""
        self._optimizer.load_own_state(state)
