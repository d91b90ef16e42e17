"""A path sampler as a user writes one: two paths a step that have no operator in common."""

import random


class OppositeSampler:
    """A uniform path, and beside it one that differs from it in every layer with a choice."""

    def __init__(self, space, *, seed, phase=0):
        self.space, self.stream = space, f"opposite:{seed}:{phase}"
        self.changes = sum(len(names) > 1 for names in space.layers)

    def plan(self, start, count):
        return [self._pair(step) for step in range(start, start + count)]

    def _pair(self, step):
        rng = random.Random(f"{self.stream}:{step}")
        path = self.space.sample(rng)
        return path, self.space.random_neighbour(path, rng, changes=self.changes)


NOT_A_CLASS = 3
