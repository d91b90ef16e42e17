"""How many children a Tune trial holds, where the configuration leaves it open."""

TRIAL_S = 1.0
"""A trial that lasts this long costs Tune, at 30 to 60 ms a trial, under 5 % of the time."""
LARGEST = 256
GENERATIONS = 20
"""A batch is at most this part of the search, so that searchers learn on the way, ..."""
ROUNDS = 4
"""... but never kept under so many children per evaluator, so that none waits long for the last."""


class BatchSize:
    """Doubles while trials follow each other too fast, or evaluators run dry.

    Args:
        evaluators: how many score at once.
        candidates: of the whole search.
        in_flight: trials at a time.
    """

    def __init__(self, *, evaluators: int, candidates: int, in_flight: int) -> None:
        self._in_flight = in_flight
        self._generation = min(LARGEST, candidates // GENERATIONS)
        self.size = min(max(evaluators, 8), self._most(evaluators))

    def after(self, *, seconds: float, idle: bool, evaluators: int) -> None:
        """Take what a trial of the present size took, whether an evaluator waited for work, and how
        many score by now.
        """
        if idle or seconds < TRIAL_S * self._in_flight:
            self.size = min(2 * self.size, self._most(evaluators))

    def _most(self, evaluators: int) -> int:
        return max(ROUNDS * evaluators, self._generation)
