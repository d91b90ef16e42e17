"""Who scores: the super-net's inherited weights, or a user's own function in their place."""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol, cast

from evaluators.own_scorer import OwnScore, OwnScorer
from orchestrator.objectives import Objectives
from orchestrator.runs import Run
from supernet.errors import InvalidInput
from supernet.sampler import load_user_class
from supernet.space import Architecture

OWN = "own"
"""What stands as `supernet_version` where no super-net scores."""


class Scorer(Protocol):
    """Makes rows of children."""

    peak_activation_mib: float

    def rows(self, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
        """A row per child, with its error where it failed."""
        ...


def check_own_score(settings: Mapping[str, Any]) -> None:
    """Check that a user's score can be loaded and takes its settings; nothing of it is run.

    Raises:
        InvalidInput: if it is missing, raises on import, or is no function or callable class.
    """
    found, arguments = _load(settings)
    try:
        if inspect.isclass(found):
            if not any("__call__" in vars(base) for base in found.__mro__):
                raise TypeError("the class has no __call__(architecture)")
            inspect.signature(found).bind(**arguments)
        else:
            inspect.signature(found).bind(object(), **arguments)
    except TypeError as error:
        raise InvalidInput(
            f"search.scorer {settings.get('name')!r} must be a function of an architecture, or a "
            f"class whose objects are, with settings {arguments}, but {error}"
        ) from error


def own_score(settings: Mapping[str, Any]) -> OwnScore:
    """A user's score from "module:Class" or "module:function" and its settings.

    Raises:
        InvalidInput: if it cannot be loaded.
    """
    found, arguments = _load(settings)
    made: Any = found(**arguments) if isinstance(found, type) else partial(found, **arguments)
    return cast(OwnScore, made)


def _load(settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    found = load_user_class(str(settings.get("name")), what="scorer", known={})
    return found, {key: value for key, value in settings.items() if key != "name"}


def own_scorer(run: Run, given: OwnScore | None) -> OwnScorer | None:
    """The scorer of a search with a user's score, given or named in the configuration."""
    settings = run.config.search
    if given is None and settings.scorer is None:
        return None
    return OwnScorer(
        given or own_score(settings.scorer or {}),
        version=OWN,
        objectives=Objectives.of(settings.objectives).names,
        costs=run.cost_model.cost if run.has_data else None,
    )
