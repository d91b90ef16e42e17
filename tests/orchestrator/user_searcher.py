"""Searchers as users write them for Ray Tune; importing this imports Ray."""

import random

from ray.tune.search import Searcher


class Walk(Searcher):
    """Uniform, and keeps what it is told."""

    def __init__(self, *, seed=0, metric="val_loss_nats", mode="min", last=None):
        super().__init__(metric=metric, mode=mode)
        self._rng = random.Random(seed)
        self._left = last
        self.space = None
        self.completed = []
        self.evaluated = []

    def set_search_properties(self, metric, mode, config, **spec):
        self.properties = (metric, mode)
        self.space = {layer: domain.categories for layer, domain in config.items()}
        return True

    def suggest(self, trial_id):
        if self._left == 0:
            return Searcher.FINISHED
        if self._left is not None:
            self._left -= 1
        return {layer: self._rng.choice(names) for layer, names in self.space.items()}

    def on_trial_complete(self, trial_id, result=None, error=False):
        self.completed.append((trial_id, result, error))

    def add_evaluated_point(self, parameters, value, **rest):
        self.evaluated.append((parameters, value))


class Forgetful(Walk):
    """Takes no points of others, as the base class does not."""

    add_evaluated_point = Searcher.add_evaluated_point


class Waiting(Walk):
    """Proposes two at a time, then waits for their scores."""

    def suggest(self, trial_id):
        if self._open() >= 2:
            return None
        self.asked = getattr(self, "asked", 0) + 1
        return super().suggest(trial_id)

    def _open(self):
        return getattr(self, "asked", 0) - len(self.completed)


class Stubborn(Walk):
    """Takes no space and proposes nothing that could be read."""

    def set_search_properties(self, metric, mode, config, **spec):
        return False

    def suggest(self, trial_id):
        return {"width": 3}


class Seedless(Walk):
    """Takes no seed."""

    def __init__(self):
        super().__init__()


def with_object(space, *, seed, metric):
    """A factory, for searchers whose settings are objects."""
    return Walk(seed=random.Random(seed).randrange(100), metric=metric)
