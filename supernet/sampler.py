"""Path samplers: which child model each optimisation step of the super-net trains.

`plan(start, count)` is a pure function of the seed, the step and the phase, so a worker that
starts again asks for the same stretch again, and all ranks train the same path.
"""

import importlib
import inspect
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

Paths = tuple[Architecture, ...]
"""The paths of one optimisation step; its gradient is the mean of theirs."""


class PathSampler(Protocol):
    """What training asks of a sampler; built as `Sampler(space, seed=…, phase=…, **settings)`."""

    def plan(self, start: int, count: int) -> list[Paths]:
        """The paths of the optimisation steps `start` … `start + count - 1`."""
        ...


def check_type(setting: str, value: Any, kind: type) -> None:
    """Raise InvalidInput unless a setting is of its type; true and false are no numbers."""
    if type(value) is not kind:
        what = {int: "a whole number", bool: "true or false"}[kind]
        raise InvalidInput(f"{setting} must be {what}, but got {setting}={value!r}")


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
        check_type("changes", changes, int)
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


class ShuffledWalkSampler:
    """MAGIC-T's paths in random order: the control for the order of the walk (our own choice).

    Each `block` of steps trains the same multiset of paths as the walk's, shuffled; give `block`
    the number of training steps to shuffle the whole walk.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        phase: int = 0,
        changes: int = 1,
        block: int = 1000,
    ) -> None:
        check_type("block", block, int)
        if block < 1:
            raise InvalidInput(f"block must be 1 or more, but got block={block}")
        self._walk = MagicTSampler(space, seed=seed, phase=phase, changes=changes)
        self._stream = f"shuffled_walk:{seed}:{phase}"
        self._block = block

    def plan(self, start: int, count: int) -> list[Paths]:
        """One path per step."""
        first, last = start // self._block, (start + count - 1) // self._block
        paths = [paths for number in range(first, last + 1) for paths in self._shuffled(number)]
        skipped = start - first * self._block
        return paths[skipped : skipped + count]

    def _shuffled(self, number: int) -> list[Paths]:
        paths = self._walk.plan(number * self._block, self._block)
        random.Random(f"{self._stream}:{number}").shuffle(paths)
        return paths


class FairNASSampler:
    """Strict fairness (FairNAS, ICCV 2021): K paths use every operator of every layer once.

    K is the largest number of candidates of a layer. The K paths are trained on one batch, and the
    mean of their gradients makes one optimisation step; with `accumulate=False` (our own choice)
    they are trained in K steps, a batch and an update each, as the other samplers do. A layer with
    fewer candidates uses each as often as any other, give or take one.
    """

    def __init__(
        self, space: SearchSpace, *, seed: int, phase: int = 0, accumulate: bool = True
    ) -> None:
        check_type("accumulate", accumulate, bool)
        if space.block_size is not None:
            raise InvalidInput(
                "its paths use every operator of every layer equally often, which is not possible "
                "where the operators of a block share a width (space.block_size): use uniform or "
                "magic_t"
            )
        self._layers = space.layers
        self._size = max(len(names) for names in space.layers)
        self._stream = f"fairnas:{seed}:{phase}"
        self._accumulate = accumulate

    def plan(self, start: int, count: int) -> list[Paths]:
        """K paths per step, or one."""
        if self._accumulate:
            return [self._block(number) for number in range(start, start + count)]
        blocks = range(start // self._size, (start + count - 1) // self._size + 1)
        paths: list[Paths] = [(path,) for number in blocks for path in self._block(number)]
        return paths[start % self._size :][:count]

    def _block(self, number: int) -> Paths:
        rng = random.Random(f"{self._stream}:{number}")
        columns = [self._order(names, rng) for names in self._layers]
        return tuple(Architecture(operators) for operators in zip(*columns, strict=True))

    def _order(self, names: tuple[str, ...], rng: random.Random) -> list[str]:
        """K names: one permutation of a layer's candidates after the other."""
        order: list[str] = []
        while len(order) < self._size:
            order += rng.sample(names, len(names))
        return order[: self._size]


_NOT_SETTINGS = ("space", "seed", "phase")
SAMPLERS: dict[str, type] = {
    "uniform": UniformSampler,
    "magic_t": MagicTSampler,
    "fairnas": FairNASSampler,
    "shuffled_walk": ShuffledWalkSampler,
}


def build_sampler(settings: Mapping[str, Any], space: SearchSpace, *, seed: int) -> PathSampler:
    """A sampler from its name ("uniform", "magic_t", "module:Class") and settings.

    Raises:
        InvalidInput: if there is no such sampler, a setting is unknown or out of range, or what
            it plans for two steps is no plan.
    """
    name = settings.get("name")
    arguments = {key: value for key, value in settings.items() if key != "name"}
    found = SAMPLERS.get(str(name)) or load_user_class(str(name), what="sampler", known=SAMPLERS)
    refuse_unknown(arguments, found, of=f"sampler {name!r}", given=_NOT_SETTINGS)
    with as_invalid_input(
        f"sampler {name!r}", arguments, "plan(start, count) gives a tuple of paths for each step"
    ):
        sampler: PathSampler = found(space, seed=seed, **arguments)
        check_plan(sampler.plan(0, 2), 2, space)
    return sampler


@contextmanager
def as_invalid_input(what: str, arguments: Mapping[str, Any], contract: str) -> Iterator[None]:
    """Whatever a user's class raises while it is made, with what is asked of it."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{what}: {error}") from None
    except Exception as error:
        raise InvalidInput(
            f"{what} with settings {arguments}: {type(error).__name__}: {error}; it is made with "
            f"(space, seed=…) and its settings, and {contract}"
        ) from error


def refuse_unknown(
    arguments: Mapping[str, Any], found: Callable[..., Any], *, of: str, given: Collection[str]
) -> None:
    """Refuse settings that a class does not take, unless it takes any.

    Args:
        given: arguments that are not named among the settings.

    Raises:
        InvalidInput: naming those that it takes.
    """
    accepted = inspect.signature(found).parameters
    if any(kind.kind is inspect.Parameter.VAR_KEYWORD for kind in accepted.values()):
        return
    known = [key for key in accepted if key not in given]
    for key in arguments:
        if key not in accepted:
            raise InvalidInput(f"{of} has no setting {key!r}; it has: {', '.join(known) or 'none'}")


def check_plan(plan: Sequence[Paths], count: int, space: SearchSpace) -> Sequence[Paths]:
    """Return the plan, or raise InvalidInput unless it holds paths of the space for each step."""
    if len(plan) != count:
        raise InvalidInput(
            f"plan(start, count) gives a tuple of paths for each step, but for {count} steps gave "
            f"{len(plan)}"
        )
    for paths in plan:
        if not isinstance(paths, tuple) or not paths:
            raise InvalidInput(f"the plan of a step is a tuple of paths, but got {paths!r}")
        for path in paths:
            if not isinstance(path, Architecture):
                raise InvalidInput(f"a path is an Architecture, but got {path!r}")
            space.check(path)
    return plan


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
