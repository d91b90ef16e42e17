"""What a child model costs: parameters and floating-point operations by formula, and latency.

Counted on the exported child: stem and head included, tied embeddings once. The latency of a map
between widths counts with the operator behind it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from supernet.errors import InvalidInput
from supernet.model import TextShape, meta_supernet
from supernet.operators import map_name
from supernet.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Cost:
    """Costs of one child model; `flops` is 2 x multiply-adds for one sequence, head included."""

    num_params: int
    flops: int
    latency_ms: float | None = None
    """A forward pass on the target device, in milliseconds; None: not measured."""

    def metrics(self) -> dict[str, float]:
        """By name, those that are known."""
        return {name: value for name, value in vars(self).items() if value is not None}


class CostModel:
    """Costs of every child of a space, without building it.

    Args:
        ends_ms: the latency of stem and head.
        operators_ms: that of each operator by name; empty: latency is not known.
    """

    def __init__(
        self,
        space: SearchSpace,
        shape: TextShape,
        *,
        ends_ms: float = 0.0,
        operators_ms: Mapping[str, float] | None = None,
    ) -> None:
        model = meta_supernet(space, shape)
        self._space = space
        length = shape.max_length
        self._ends = Cost(
            count_params(model.stem) + count_params(model.head),
            model.stem.flops(length) + model.head.flops(length),
            ends_ms if operators_ms else None,
        )
        self._operators = {
            (layer, name): Cost(
                count_params(model.operator(layer, name)),
                _flops(model.operator(layer, name), length),
                operators_ms[name] if operators_ms else None,
            )
            for layer, names in enumerate(space.layers)
            for name in names
        }
        self._chain = model.chain
        self._maps = {
            name: Cost(
                count_params(module),
                2 * length * matrix_size(module),
                0.0 if operators_ms else None,
            )
            for name, module in model.chain.maps.items()
        }

    def cost(self, architecture: Architecture) -> Cost:
        """The cost of one child."""
        parts = [self._operators[key] for key in enumerate(architecture.operators)]
        parts += [self._maps[name] for _, name in self._chain.maps_on(architecture.operators)]
        return Cost(
            self._ends.num_params + sum(part.num_params for part in parts),
            self._ends.flops + sum(part.flops for part in parts),
            None
            if self._ends.latency_ms is None
            else self._ends.latency_ms + sum(part.latency_ms or 0.0 for part in parts),
        )

    def cheapest(self, metric: str) -> Architecture:
        """The architecture with the least `metric`, a field of `Cost`."""
        return self._extreme(metric, sign=1)

    def dearest(self, metric: str) -> Architecture:
        """The architecture with the most `metric`, a field of `Cost`."""
        return self._extreme(metric, sign=-1)

    def _extreme(self, metric: str, *, sign: int) -> Architecture:
        if getattr(self._ends, metric, None) is None:
            raise InvalidInput(f"costs are {list(self._ends.metrics())}, but got {metric!r}")
        return self._space.cheapest(
            lambda layer, name: sign * getattr(self._operators[layer, name], metric),
            lambda block, before, width: sign * self._of_map(metric, block, before, width),
        )

    def _of_map(self, metric: str, block: int, before: int | None, width: int | None) -> float:
        """Of the map between two widths; None: the ends'."""
        own = self._chain.hidden_size
        name = map_name(block, before or own, width or own)
        return float(getattr(self._maps[name], metric)) if name in self._maps else 0.0


def _flops(operator: Any, length: int) -> int:
    flops: int = operator.flops(length)
    return flops


def matrix_size(module: nn.Module) -> int:
    """Multiply-adds of a linear map per token."""
    assert isinstance(module, nn.Linear)
    return module.weight.numel()


def count_params(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
