"""What moves the weights: the seam between the training loop and PyTorch or DeepSpeed.

`PlainEngine` is one process of plain PyTorch, for fast tests and `--local`; the product is
`supernet.deepspeed_engine`.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from supernet.model import SuperNet
from supernet.settings import OptimiserSettings
from supernet.space import Architecture

ADAM_STATES = ("exp_avg", "exp_avg_sq", "step")


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
        self._clip_norm = settings.clip_norm
        self._optimizer = build_adamw(model, settings)

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Start an optimisation step that trains these paths."""
        self._optimizer.zero_grad()
        self.model.only_path_requires_grad(*paths)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of the loss."""
        loss.backward()  # type: ignore[no-untyped-call]

    def update(self, learning_rate: float) -> None:
        """Clip, then take the optimiser step."""
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
        set_learning_rate(self._optimizer, learning_rate)
        self._optimizer.step()

    def total(self, values: Sequence[float]) -> list[float]:
        """The values themselves: there is one worker."""
        return list(values)

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """Optimiser state by "<state>/<parameter>"."""
        return adam_state(self.model, self._optimizer)

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `optimizer_state` gave."""
        load_adam_state(self.model, self._optimizer, state)


def build_adamw(model: SuperNet, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW; as for BERT, biases and normalisation are left out of the weight decay."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else free).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of the next step, the same for every parameter."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def adam_state(model: SuperNet, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state by "<state>/<parameter>"; nothing for a parameter that never took a step."""
    return {
        f"{state}/{name}": optimizer.state[parameter][state]
        for name, parameter in model.named_parameters()
        for state in ADAM_STATES
        if parameter in optimizer.state
    }


def load_adam_state(
    model: SuperNet, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `adam_state` gave."""
    for name, parameter in model.named_parameters():
        found = {key: state[f"{key}/{name}"] for key in ADAM_STATES if f"{key}/{name}" in state}
        if found:
            optimizer.state[parameter] = {
                key: tensor.clone().to(parameter.device if key != "step" else tensor.device)
                for key, tensor in found.items()
            }
