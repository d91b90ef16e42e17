"""Searchers propose the candidates of the search and learn from their scores.

Ours draw from a stream per ask, `Random(seed, number of the ask)`, so their state is small and
plain JSON. A user's is named "module:Class": ask and tell suffice, and Ray Tune's searchers are
adapted. Imports neither Ray nor torch.
"""

import importlib.util
import inspect
import logging
import random
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.objectives import DEFAULT_OBJECTIVES, Metrics, Objectives
from supernet.errors import InvalidInput
from supernet.sampler import as_invalid_input, load_user_class, refuse_unknown
from supernet.space import Architecture, SearchSpace

logger = logging.getLogger(__name__)


class AskTell(Protocol):
    """What the search asks of a searcher; built as `Searcher(space, seed=…, **settings)`.

    Optional: `state_dict() -> dict` of plain JSON values and `load_state_dict(dict)`, for
    resuming at once; a searcher without them is asked and told everything again, in the order of
    before.
    """

    def ask(self) -> Architecture | None:
        """The next candidate; None: nothing before more is told.

        Raises:
            StopIteration: if there will be no more; the search then ends early.
        """
        ...

    def tell(self, architecture: Architecture, metrics: Metrics | None) -> None:
        """A candidate's scores; None: it failed, was proposed before, or breaks a rule.

        Also told: what this object was not asked for, such as the scores of a resumed search.
        """
        ...


class RandomSearcher:
    """Uniform over the space."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        self._space = space
        self._stream = f"random_searcher:{seed}"
        self._asked = 0

    def ask(self) -> Architecture:
        """The next uniform candidate."""
        self._asked += 1
        return self._space.sample(random.Random(f"{self._stream}:{self._asked}"))

    def tell(self, architecture: Architecture, metrics: Metrics | None) -> None:
        """Nothing is learnt."""

    def state_dict(self) -> dict[str, Any]:
        """How far the stream has been drawn."""
        return {"asked": self._asked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._asked = int(state["asked"])


class RegularizedEvolution:
    """Aging evolution (Real et al., AAAI 2019, arXiv 1802.01548).

    The first `population` candidates are uniform; then each is the winner of a tournament,
    changed in one layer. A scored candidate joins the population and the oldest one dies. Asks
    run ahead of tells, so a tournament is held among those that are scored already. Of several
    objectives it knows the first alone.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        population: int = 50,
        sample: int = 10,
        objectives: Objectives = DEFAULT_OBJECTIVES,
    ) -> None:
        if not 1 <= sample <= population:
            raise InvalidInput(
                f"1 <= sample <= population must hold, but got {sample=}, {population=}"
            )
        self._space = space
        self._stream = f"evolution:{seed}"
        self._population = population
        self._sample = sample
        self._objectives = objectives
        self._asked = 0
        self._failed = 0
        self._living: deque[tuple[Architecture, float]] = deque(maxlen=population)

    def ask(self) -> Architecture:
        """The next candidate."""
        begun = self._asked - self._failed
        self._asked += 1
        rng = random.Random(f"{self._stream}:{self._asked}")
        if begun < self._population or not self._living or self._space.size == 1:
            return self._space.sample(rng)
        rivals = rng.choices(self._living, k=self._sample)
        parent, _ = min(rivals, key=lambda member: member[1])
        return self._space.random_neighbour(parent, rng)

    def tell(self, architecture: Architecture, metrics: Metrics | None) -> None:
        """Let the candidate join the population, unless it failed.

        Raises:
            InvalidInput: if the metrics lack an objective.
        """
        if metrics is None:
            self._failed += 1
            return
        self._living.append((architecture, self._objectives.losses(metrics)[0]))

    def state_dict(self) -> dict[str, Any]:
        """How far the stream has been drawn, and the living population, oldest first."""
        return {
            "asked": self._asked,
            "failed": self._failed,
            "living": [[str(architecture), value] for architecture, value in self._living],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._asked = int(state["asked"])
        self._failed = int(state["failed"])
        self._living.clear()
        self._living.extend((Architecture.parse(text), value) for text, value in state["living"])


SEARCHERS: dict[str, type | str] = {
    "random": RandomSearcher,
    "evolution": RegularizedEvolution,
    "optuna": "orchestrator.optuna_searcher:OptunaSearcher",
    "hyperopt": "ray.tune.search.hyperopt:HyperOptSearch",
}
"""Ours, and where those are that need another library."""
LIBRARIES = {"optuna": "optuna", "hyperopt": "hyperopt"}
GIVEN_OBJECTIVES = ("evolution", "optuna")
_NOT_SETTINGS = ("space", "seed", "objectives")
_SEED_NAMES = ("seed", "random_state_seed")


def build_searcher(
    settings: Mapping[str, Any],
    space: SearchSpace,
    *,
    seed: int,
    objectives: Objectives = DEFAULT_OBJECTIVES,
) -> AskTell:
    """A searcher from its name ("random", "evolution", "optuna", "hyperopt", "module:Class") and
    settings.

    A class derived from Ray Tune's `Searcher` gets its settings as they are, with the seed where
    it takes one; it is told the space as `layer_00 … = tune.choice(operator names)`.

    Raises:
        InvalidInput: if there is no such searcher, or a setting is unknown or out of range.
    """
    if "name" not in settings:
        raise InvalidInput(
            f"a searcher is {{name: …}} with its settings, but got {dict(settings)}: name one of "
            f"{', '.join(SEARCHERS)}, or your own class as 'module:Class'"
        )
    name = str(settings["name"])
    arguments = {key: value for key, value in settings.items() if key != "name"}
    found = _find(name)
    is_tune = isinstance(found, type) and _is_tune_class(found)
    refuse_unknown(
        arguments, found, of=f"searcher {name!r}", given=() if is_tune else _NOT_SETTINGS
    )
    with as_invalid_input(f"searcher {name!r}", arguments, "has ask and tell, or is Ray Tune's"):
        if is_tune:
            searcher = found(**_seeded(found, name, arguments, seed))
        else:
            given = {"objectives": objectives} if name in GIVEN_OBJECTIVES else {}
            searcher = found(space, seed=seed, **given, **arguments)
        return as_ask_tell(searcher, space, objectives)


def _find(name: str) -> type:
    library = LIBRARIES.get(name)
    if library and importlib.util.find_spec(library) is None:
        raise InvalidInput(
            f"searcher {name!r} needs the library {library}, which is not installed: "
            f"pip install 'magic-nas[{library}]'"
        )
    known = SEARCHERS.get(name, name)
    if isinstance(known, type):
        return known
    return load_user_class(known, what="searcher", known=SEARCHERS)


def as_ask_tell(
    searcher: Any, space: SearchSpace, objectives: Objectives = DEFAULT_OBJECTIVES
) -> AskTell:
    """A searcher object as ask and tell: itself, or an adapter around Ray Tune's `Searcher`.

    Raises:
        InvalidInput: if it is neither.
    """
    if _is_tune_class(type(searcher)):
        from orchestrator.on_ray.tune_searcher import TuneSearcherAdapter

        return TuneSearcherAdapter(searcher, space, objectives)
    missing = [part for part in ("ask", "tell") if not callable(getattr(searcher, part, None))]
    if missing:
        raise InvalidInput(
            f"a searcher has methods ask() and tell(architecture, metrics), or is a Ray Tune "
            f"Searcher, but {type(searcher).__name__} lacks {' and '.join(missing)}"
        )
    return searcher  # type: ignore[no-any-return]


def _is_tune_class(found: type) -> bool:
    """Told by name, for whoever derives from Tune's class has imported Ray, and others need not."""
    return any(
        base.__name__ == "Searcher" and base.__module__.startswith("ray.tune.search")
        for base in found.__mro__
    )


def _seeded(found: type, name: str, arguments: dict[str, Any], seed: int) -> dict[str, Any]:
    taken = [key for key in _SEED_NAMES if key in inspect.signature(found).parameters]
    if not taken:
        logger.warning(
            "searcher %r takes no seed (an argument named %s): its proposals cannot be repeated",
            name,
            " or ".join(_SEED_NAMES),
        )
    return {key: seed for key in taken} | arguments
