"""Optuna's samplers as ask and tell; imported only where a search names them."""

from collections import defaultdict
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState

from orchestrator.objectives import DEFAULT_OBJECTIVES, Metrics, Objectives
from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

SAMPLERS: dict[str, type[BaseSampler]] = {
    "tpe": TPESampler,
    "nsga2": NSGAIISampler,
    "random": RandomSampler,
}


class OptunaSearcher:
    """An Optuna study in memory: TPE for one objective, NSGA-II for several.

    It sees the space's `parameters`, such as `layer_00 … = one of the operator names`. It keeps
    no state of its own: a search that goes on asks and tells it again what stands in the log.

    Args:
        sampler: "tpe", "nsga2" or "random"; none: by the number of objectives.
        settings: of the sampler, such as `population_size` of NSGA-II.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        objectives: Objectives = DEFAULT_OBJECTIVES,
        sampler: str | None = None,
        **settings: Any,
    ) -> None:
        chosen = sampler or ("tpe" if len(objectives.modes) == 1 else "nsga2")
        if chosen not in SAMPLERS:
            raise InvalidInput(f"sampler must be one of {', '.join(SAMPLERS)}, but got {sampler!r}")
        if chosen == "tpe":
            # Asks run ahead of tells: what is being scored is taken to be bad.
            settings = {"constant_liar": True} | settings
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._objectives = objectives
        self._space = space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(choices) for name, choices in space.parameters.items()
        }
        self._study = optuna.create_study(
            directions=["minimize"] * len(objectives.modes),
            sampler=SAMPLERS[chosen](seed=seed, **settings),  # type: ignore[call-arg]
        )
        self._open: defaultdict[Architecture, list[Trial]] = defaultdict(list)

    def ask(self) -> Architecture:
        """The sampler's next suggestion."""
        trial = self._study.ask(self._distributions)
        architecture = self._space.from_parameters(trial.params)
        self._open[architecture].append(trial)
        return architecture

    def tell(self, architecture: Architecture, metrics: Metrics | None) -> None:
        """Complete a trial; what was not asked for is added as one.

        Raises:
            InvalidInput: if the metrics lack an objective.
        """
        values = None if metrics is None else self._objectives.losses(metrics)
        trials = self._open.get(architecture)
        if trials:
            # The latest: a repeat is refused while the first proposal is still being scored.
            trial = trials.pop()
            if not trials:
                del self._open[architecture]
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            self._study.tell(trial, values, state=state)
        elif values is not None:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=self._space.to_parameters(architecture),
                    distributions=self._distributions,
                    values=list(values),
                )
            )
