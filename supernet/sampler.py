"""Path samplers: which child model each optimisation step of the super-net trains.

`plan(start, count)` is a pure function of the seed, the step and the phase, so a worker that
starts again asks for the same stretch again, and all ranks train the same path.
"""

import importlib
import random
from collections.abc import Mapping
from typing import Any, Protocol

from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

Paths = tuple[Architecture, ...]
"""The paths of one optimisation step; their gradients add up."""


class PathSampler(Protocol):
    """What training asks of a sampler; built as `Sampler(space, seed=…, phase=…, **settings)`."""

    def plan(self, start: int, count: int) -> list[Paths]:
        """The paths of the optimisation steps `start` … `start + count - 1`."""
        ...


class UniformSampler:
    """One path a step, uniform over the space (SPOS, "Single Path One-Shot NAS", ECCV 2020)."""

    def __init__(self, space: SearchSpace, *, seed: int, phase: int = 0) -> None:
        self._space = space
        self._stream = f"uniform:{seed}:{phase}"

    def plan(self, start: int, count: int) -> list[Paths]:
        """One uniform path per step."""
        return [
            (self._space.sample(random.Random(f"{self._stream}:{step}")),)
            for step in range(start, start + count)
        ]


class MagicTSampler:
    """MAGIC-T (ICML 2022): a walk that changes one operator between adjacent steps.

    The first path is uniform; then `changes` layers are drawn uniformly and each takes another
    operator, drawn uniformly from the others. How the draws are made, and `changes` other than
    1, are our own choice.
    """

    _STRIDE = 1024

    def __init__(self, space: SearchSpace, *, seed: int, phase: int = 0, changes: int = 1) -> None:
        self._space = space
        self._stream = f"magic_t:{seed}:{phase}"
        self._changes = changes
        first = space.sample(random.Random(self._stream))
        space.random_neighbour(first, random.Random(0), changes=changes)
        self._landmarks = [first]

    def plan(self, start: int, count: int) -> list[Paths]:
        """One path per step, each differing from the one before in exactly `changes` layers."""
        step, path = self._landmark_before(start)
        paths: list[Paths] = []
        while step < start + count:
            if step >= start:
                paths.append((path,))
            path = self._after(path, step)
            step += 1
        return paths

    def _after(self, path: Architecture, step: int) -> Architecture:
        rng = random.Random(f"{self._stream}:{step}")
        return self._space.random_neighbour(path, rng, changes=self._changes)

    def _landmark_before(self, start: int) -> tuple[int, Architecture]:
        """A step at or before `start` whose path is known; every 1,024th is kept on the way."""
        wanted = start // self._STRIDE
        while len(self._landmarks) <= wanted:
            path, first = self._landmarks[-1], (len(self._landmarks) - 1) * self._STRIDE
            for step in range(first, first + self._STRIDE):
                path = self._after(path, step)
            self._landmarks.append(path)
        return wanted * self._STRIDE, self._landmarks[wanted]


SAMPLERS: dict[str, type] = {"uniform": UniformSampler, "magic_t": MagicTSampler}


def build_sampler(settings: Mapping[str, Any], space: SearchSpace, *, seed: int) -> PathSampler:
    """A sampler from its name ("uniform", "magic_t", "module:Class") and settings.

    Raises:
        InvalidInput: if there is no such sampler, or a setting is unknown or out of range.
    """
    name = settings.get("name")
    arguments = {key: value for key, value in settings.items() if key != "name"}
    found = SAMPLERS.get(str(name)) or load_user_class(str(name), what="sampler", known=SAMPLERS)
    try:
        sampler: PathSampler = found(space, seed=seed, **arguments)
    except TypeError as error:
        raise InvalidInput(f"sampler {name!r} with settings {arguments}: {error}") from None
    return sampler


def load_user_class(reference: str, *, what: str, known: Mapping[str, Any]) -> type:
    """A user's class named as "module:Class".

    Raises:
        InvalidInput: if it is not of that form or cannot be loaded.
    """
    module, colon, name = reference.partition(":")
    if not colon:
        raise InvalidInput(
            f"unknown {what} {reference!r}; known are {', '.join(known)}, or your own class as "
            f"'module:Class'"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise InvalidInput(f"cannot load the {what} {reference!r}: {error}") from error
    if not callable(found):
        raise InvalidInput(f"the {what} {reference!r} must be a class, but is {found!r}")
    return found  # type: ignore[no-any-return]
