"""FairNAS with neighbouring blocks: a walk that uses all operators equally often (our own)."""

import random

from supernet.sampler import Paths
from supernet.space import Architecture, SearchSpace


class FairWalk:
    """Changes one operator between adjacent steps, like MAGIC-T, and uses all equally often.

    The layers change in turn, in an order drawn once, so that an operator stays for L steps; in K
    changes of a layer each of its K operators has its turn, in random order.

    Args:
        space: of layers with two or more operators each; a layer with one stays as it is.
    """

    def __init__(self, space: SearchSpace, *, seed: int, phase: int = 0) -> None:
        stream = f"fair_walk:{seed}:{phase}"
        self._layers = space.layers
        numbers = range(len(space.layers))
        self._order = random.Random(stream).sample(numbers, len(numbers))
        self._draws = [random.Random(f"{stream}:{number}") for number in numbers]
        self._turns: list[list[str]] = [[] for _ in numbers]

    def plan(self, start: int, count: int) -> list[Paths]:
        """One path per step."""
        return [(self._path(step),) for step in range(start, start + count)]

    def _path(self, step: int) -> Architecture:
        turn, within = divmod(step, len(self._layers))
        changed = set(self._order[: within + 1])
        return Architecture(
            tuple(self._operator(n, turn + (n in changed)) for n in range(len(self._layers)))
        )

    def _operator(self, layer: int, turn: int) -> str:
        turns = self._turns[layer]
        while len(turns) <= turn:
            more = self._draws[layer].sample(self._layers[layer], len(self._layers[layer]))
            if turns and more[0] == turns[-1]:
                more.reverse()
            turns += more
        return turns[turn]
