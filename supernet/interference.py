"""Interference of child models that share operators: how alike their gradients are.

Measures one group of children on one batch, all pairs at once; draws nothing and keeps nothing.

B: sequences, T: tokens, D: hidden size, C: children that share an operator, P: its parameters.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.loss import as_scored, masked_lm_loss
from supernet.model import SuperNet
from supernet.space import Architecture


@dataclass(frozen=True)
class SharedOperator:
    """An operator that two children share: how alike its gradients, inputs and outputs are.

    Gradients are of the child's mean loss over its targets (`supernet.loss.evaluate`), by all of
    the operator's parameters. Inputs and outputs are the hidden states at real tokens. A cosine is
    NaN where a vector is zero. That gradients are compared is the paper's (ICML 2022); the cosine,
    and the two measures of likeness of inputs and outputs, are our own choice.
    """

    first: int
    """The first child, by its place in the group."""
    second: int
    layer: int
    operator: str
    gradient_cosine: float
    input_cosine: float
    input_neg_mse: float
    """Minus the mean squared difference: larger is more alike, 0 is equal."""
    output_cosine: float
    output_neg_mse: float


@dataclass(frozen=True)
class _Trace:
    """What one child's pass left behind, by layer."""

    gradients_P: Sequence[torch.Tensor]
    inputs_BTD: Sequence[torch.Tensor]
    outputs_BTD: Sequence[torch.Tensor]


def measure_interference(
    model: SuperNet, paths: Sequence[Architecture], batch: Batch
) -> list[SharedOperator]:
    """Every operator with parameters that two of the paths share, by layer, operator and pair.

    One forward and backward pass per path, without dropout; the model is left as it was.

    Raises:
        InvalidInput: if the batch has no masked token.
    """
    if not batch.num_targets:
        raise InvalidInput(
            "interference is measured on a batch with at least one masked token, but this one has "
            "none: raise interference.batch_size or data.mask_probability"
        )
    was_training = model.training
    model.eval()
    try:
        (batch,) = as_scored(model, [batch])
        traces = [_trace(model, path, batch) for path in paths]
    finally:
        model.train(was_training)
    real_BT = batch.attention_mask_BT
    return [
        row for layer in range(len(paths[0])) for row in _compare(paths, traces, layer, real_BT)
    ]


def _trace(model: SuperNet, path: Architecture, batch: Batch) -> _Trace:
    operators = [model.operator(layer, name) for layer, name in enumerate(path.operators)]
    with _states_kept(operators) as states:
        loss_sum, count = masked_lm_loss(model, path, batch)
    inputs_BTD, outputs_BTD = zip(*states, strict=True)
    return _Trace(_gradients(loss_sum / count, operators), inputs_BTD, outputs_BTD)


@contextmanager
def _states_kept(
    operators: Sequence[nn.Module],
) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collects input and output (B, T, D) of each operator in the order in which they run."""
    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], output_BTD: torch.Tensor) -> None:
        states.append((inputs[0].detach(), output_BTD.detach()))

    hooks = [operator.register_forward_hook(keep) for operator in operators]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(loss: torch.Tensor, operators: Sequence[nn.Module]) -> Sequence[torch.Tensor]:
    """For each operator its flat gradient (P); zero where a parameter is not used."""
    weights = [list(operator.parameters()) for operator in operators]
    every = [weight for row in weights for weight in row]
    if not every:
        return [loss.new_zeros(0) for _ in operators]
    found = torch.autograd.grad(loss, every, allow_unused=True, materialize_grads=True)
    flat = torch.cat([gradient.flatten() for gradient in found])
    return torch.split(flat, [sum(weight.numel() for weight in row) for row in weights])


def _compare(
    paths: Sequence[Architecture], traces: Sequence[_Trace], layer: int, real_BT: torch.Tensor
) -> Iterator[SharedOperator]:
    for name in dict.fromkeys(path.operators[layer] for path in paths):
        members = [place for place, path in enumerate(paths) if path.operators[layer] == name]
        gradients_CP = torch.stack([traces[place].gradients_P[layer] for place in members])
        if len(members) < 2 or not gradients_CP.numel():
            continue
        inputs = torch.stack([traces[place].inputs_BTD[layer][real_BT] for place in members])
        outputs = torch.stack([traces[place].outputs_BTD[layer][real_BT] for place in members])
        measures = torch.stack(
            [_cosines(gradients_CP), *_likeness(inputs.flatten(1)), *_likeness(outputs.flatten(1))]
        ).tolist()
        for one, other in combinations(range(len(members)), 2):
            values = [measure[one][other] for measure in measures]
            yield SharedOperator(members[one], members[other], layer, name, *values)


def _likeness(states_CN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and negative mean squared differences of all pairs, both (C, C)."""
    return _cosines(states_CN), -_squared_distances(states_CN) / states_CN.shape[1]


def _cosines(rows_CN: torch.Tensor) -> torch.Tensor:
    """By way of distances, so that equal rows have the cosine 1 exactly and rank as ties."""
    rows_CN = rows_CN.double()
    return 1 - _squared_distances(rows_CN / rows_CN.norm(dim=1, keepdim=True)) / 2


def _squared_distances(rows_CN: torch.Tensor) -> torch.Tensor:
    rows_CN = rows_CN.double()
    distances_CC = torch.cdist(rows_CN, rows_CN, compute_mode="donot_use_mm_for_euclid_dist")
    return distances_CC.square()
