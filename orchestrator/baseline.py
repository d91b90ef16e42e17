"""What the best child is compared with: a Transformer made by hand, and random children."""

import logging
import random
from collections.abc import Collection, Iterable
from itertools import cycle, islice, product
from typing import TYPE_CHECKING

from orchestrator.limits import Limits, sample_within
from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from supernet.cost import CostModel

logger = logging.getLogger(__name__)


def handmade_baseline(
    space: SearchSpace, cost_model: "CostModel", *, num_params: int
) -> Architecture:
    """BERT's pattern at the size nearest to `num_params`.

    Attention and feed-forward alternate from the stem on, in whole pairs, and the layers behind
    them are identities. Where the space has no such path, the pattern fills the chain to its end.

    Raises:
        InvalidInput: if the space has no path of that kind.
    """
    paths = baseline_paths(space)
    return min(paths, key=lambda path: abs(cost_model.cost(path).num_params - num_params))


def baseline_paths(space: SearchSpace) -> list[Architecture]:
    """The paths of BERT's pattern, of whatever size.

    Raises:
        InvalidInput: if the space has none.
    """
    layers = len(space.layers)
    paths = _transformers(space, range(2, layers + 1, 2)) or _transformers(space, [layers])
    if not paths:
        raise InvalidInput(
            f"the hand-made baseline alternates operators of kind 'attention' and 'feed_forward' "
            f"from layer 0 on, with 'identity' behind them where it is less deep, but none of the "
            f"space's paths of {layers} layers is of that kind; declare these kinds in "
            f"space.candidates, or leave them in every layer of space.per_layer"
        )
    return paths


def random_controls(
    space: SearchSpace,
    cost_model: "CostModel",
    limits: Limits,
    *,
    count: int,
    seed: int,
    exclude: Collection[Architecture],
) -> list[Architecture]:
    """Distinct architectures, uniform over those within limits; fewer where there are no more."""
    rng = random.Random(f"controls:{seed}")
    controls: list[Architecture] = []
    for _ in range(count):
        control = sample_within(space, cost_model, limits, rng, exclude={*exclude, *controls})
        if control is None:
            logger.warning(
                "%d random controls were asked for, but the space has only %d more architectures "
                "within the limits (%s)",
                count,
                len(controls),
                limits,
            )
            break
        controls.append(control)
    return controls


def _transformers(space: SearchSpace, depths: Iterable[int]) -> list[Architecture]:
    layers = len(space.layers)
    identities = _of_kind(space, "identity")
    found = []
    for depth, *pair in product(
        depths, _of_kind(space, "attention"), _of_kind(space, "feed_forward")
    ):
        pattern = tuple(islice(cycle(pair), depth))
        rests = [(name,) * (layers - depth) for name in identities] if depth < layers else [()]
        found += [Architecture(pattern + rest) for rest in rests]
    return [path for path in found if space.contains(path)]


def _of_kind(space: SearchSpace, kind: str) -> list[str]:
    return [name for name, spec in space.operators.items() if spec.kind == kind]
