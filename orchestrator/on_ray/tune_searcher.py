"""Presents a Ray Tune `Searcher` as ask and tell; starts no cluster."""

import logging
from collections import defaultdict
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from orchestrator.objectives import Metrics, Objectives
from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

logger = logging.getLogger(__name__)


class TuneSearcherAdapter:
    """Asks and tells a Tune searcher, which sees one trial per candidate.

    It keeps no state of its own: Tune's searchers save pickles, which are not read here. A
    resumed search tells the earlier scores instead, where the searcher takes them.

    Args:
        objectives: what is searched for, unless the searcher has a metric of its own.
    """

    def __init__(
        self,
        searcher: Any,
        space: SearchSpace,
        objectives: Objectives,
    ) -> None:
        self._searcher = searcher
        self._space = space
        self._layers = list(space.parameters)
        names, modes = objectives.names, [mode for _, mode in objectives.modes]
        several = len(names) > 1
        self._metric: str | list[str] = searcher.metric or (names if several else names[0])
        mode = searcher.mode or (modes if several else modes[0])
        self._trials: defaultdict[Architecture, list[str]] = defaultdict(list)
        self._asked = 0
        self._warned = False
        config = {name: tune.choice(list(choices)) for name, choices in space.parameters.items()}
        if not searcher.set_search_properties(self._metric, mode, config):
            logger.warning(
                "%s did not take the search space (set_search_properties returned False): it must "
                "propose %s … by itself",
                type(searcher).__name__,
                self._layers[0],
            )

    def ask(self) -> Architecture | None:
        """The next candidate; None where the searcher waits for scores.

        Raises:
            StopIteration: if the searcher has finished.
            InvalidInput: if a suggestion lacks a layer or names something else.
        """
        self._asked += 1
        trial = f"candidate_{self._asked:06d}"
        config = self._searcher.suggest(trial)
        if config is None:
            return None
        if config == Searcher.FINISHED:
            raise StopIteration
        architecture = self._read(config)
        self._trials[architecture].append(trial)
        return architecture

    def tell(self, architecture: Architecture, metrics: Metrics | None) -> None:
        """Complete the candidate's trial; one that was not asked for becomes an evaluated point.

        Raises:
            InvalidInput: if the metrics lack one that is searched for.
        """
        if metrics is not None:
            self._check(metrics)
        trials = self._trials.get(architecture)
        if not trials:
            self._tell_earlier(architecture, metrics)
            return
        # The latest: a repeat is refused while the first proposal is still being scored.
        trial = trials.pop()
        if not trials:
            del self._trials[architecture]
        if metrics is None:
            self._searcher.on_trial_complete(trial, error=True)
        else:
            self._searcher.on_trial_complete(trial, result=dict(metrics))

    def _tell_earlier(self, architecture: Architecture, metrics: Metrics | None) -> None:
        if metrics is None:
            return
        parameters = self._space.to_parameters(architecture)
        try:
            self._searcher.add_evaluated_point(parameters, self._values(metrics))
        except (NotImplementedError, TypeError) as error:
            if not self._warned:
                self._warned = True
                logger.warning(
                    "%s takes no scores of candidates that it did not propose itself, so it goes "
                    "on without those of the search before (%r)",
                    type(self._searcher).__name__,
                    error,
                )

    def _check(self, metrics: Metrics) -> None:
        names = [self._metric] if isinstance(self._metric, str) else self._metric
        for name in names:
            if name not in metrics:
                raise InvalidInput(
                    f"the searcher's metric must be one of {sorted(metrics)}, but got {name!r}"
                )

    def _values(self, metrics: Metrics) -> float | list[float]:
        names = self._metric
        return metrics[names] if isinstance(names, str) else [metrics[name] for name in names]

    def _read(self, config: dict[str, Any]) -> Architecture:
        missing = [layer for layer in self._layers if not isinstance(config.get(layer), str)]
        if missing:
            raise InvalidInput(
                f"a suggestion names an operator for each of {self._layers[0]} … "
                f"{self._layers[-1]}, but {type(self._searcher).__name__} gave {config}"
            )
        try:
            return self._space.from_parameters(config)
        except KeyError as error:
            raise InvalidInput(
                f"a suggestion takes one of the space's choices for {self._layers[0]} …, but "
                f"{type(self._searcher).__name__} gave {error}"
            ) from None
