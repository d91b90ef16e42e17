"""What a child model costs: parameters and floating-point operations, by formula.

Counted on the exported child: stem and head included, tied embeddings once.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from supernet.errors import InvalidInput
from supernet.model import TextShape, meta_supernet
from supernet.space import Architecture, SearchSpace


@dataclass(frozen=True)
class Cost:
    """Costs of one child model; `flops` is 2 x multiply-adds for one sequence, head included."""

    num_params: int
    flops: int


class CostModel:
    """Costs of every child of a space, without building it."""

    def __init__(self, space: SearchSpace, shape: TextShape) -> None:
        model = meta_supernet(space, shape)
        self._space = space
        length = shape.max_length
        self._ends = Cost(
            count_params(model.stem) + count_params(model.head),
            model.stem.flops(length) + model.head.flops(length),
        )
        self._operators = {
            (layer, name): _cost_of(model.operator(layer, name), length)
            for layer, names in enumerate(space.layers)
            for name in names
        }

    def cost(self, architecture: Architecture) -> Cost:
        """The cost of one child."""
        parts = [self._operators[key] for key in enumerate(architecture.operators)]
        return Cost(
            self._ends.num_params + sum(part.num_params for part in parts),
            self._ends.flops + sum(part.flops for part in parts),
        )

    def cheapest(self, metric: str) -> Architecture:
        """The architecture with the least `metric`, "num_params" or "flops"."""
        return self._extreme(metric, sign=1)

    def dearest(self, metric: str) -> Architecture:
        """The architecture with the most `metric`, "num_params" or "flops"."""
        return self._extreme(metric, sign=-1)

    def _extreme(self, metric: str, *, sign: int) -> Architecture:
        if metric not in Cost.__dataclass_fields__:
            raise InvalidInput(f"costs are {list(Cost.__dataclass_fields__)}, but got {metric!r}")
        return self._space.cheapest(
            lambda layer, name: sign * getattr(self._operators[layer, name], metric)
        )


def _cost_of(operator: Any, length: int) -> Cost:
    return Cost(count_params(operator), operator.flops(length))


def count_params(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
