"""A walk of neighbouring paths that is as fair as FairNAS: our own choice, tried by the study."""

import random

from supernet.sampler import Paths
from supernet.space import Architecture, SearchSpace


class FairWalk:
    """Changes one operator between adjacent steps, like MAGIC-T, but all equally often.

    In L steps every layer changes once, in random order; in K changes of a layer each of its K
    operators has its turn.
    """

    def __init__(self, space: SearchSpace, *, seed: int, phase: int = 0) -> None:
        self._layers = space.layers
        self._stream = f"fair_walk:{seed}:{phase}"
        self._draws = [random.Random(f"{self._stream}:layer:{n}") for n in range(len(self._layers))]
        self._turns: list[list[str]] = [[] for _ in self._layers]

    def plan(self, start: int, count: int) -> list[Paths]:
        """One path per step."""
        return [(self._path(step),) for step in range(start, start + count)]

    def _path(self, step: int) -> Architecture:
        number, within = divmod(step, len(self._layers))
        order = random.Random(f"{self._stream}:{number}").sample(
            range(len(self._layers)), len(self._layers)
        )
        changed = order[: within + 1]
        return Architecture(
            tuple(self._operator(n, number + (n in changed)) for n in range(len(self._layers)))
        )

    def _operator(self, layer: int, turn: int) -> str:
        turns = self._turns[layer]
        while len(turns) <= turn:
            more = self._draws[layer].sample(self._layers[layer], len(self._layers[layer]))
            if turns and more[0] == turns[-1]:
                more.reverse()
            turns += more
        return turns[turn]
