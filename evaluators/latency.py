"""Latency of children on a device: each operator measured, a child predicted as the sum.

Our own design: operators are timed where they stand in whole children, for there the caches and the
memory are those of a child; what whole children take beyond the sum goes to the network's ends.
"""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.settings import LatencySettings
from supernet.space import Architecture, SearchSpace

WARM_UP = 3
"""Runs of every path before the first one that counts."""


@dataclass(frozen=True)
class Measured:
    """A whole child's latency in milliseconds, predicted and measured (median of the repeats)."""

    architecture: str
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return abs(self.predicted_ms / self.measured_ms - 1)


@dataclass(frozen=True)
class LatencyTable:
    """What a forward pass takes, in milliseconds: of each operator, and of stem and head."""

    device: str
    """What the device calls itself."""
    settings: dict[str, Any]
    sequence_length: int
    ends_ms: float
    operators_ms: dict[str, float]
    held_out: tuple[Measured, ...]
    """Random children that were not used for the table."""

    def predict(self, architecture: Architecture) -> float:
        """A child's latency in milliseconds."""
        return self.ends_ms + sum(self.operators_ms[name] for name in architecture.operators)

    @property
    def median_error(self) -> float:
        """Of the held-out children, relative."""
        return statistics.median(child.error for child in self.held_out)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return asdict(self) | {"median_error": self.median_error}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatencyTable":
        """Read what `to_dict` gave."""
        values = {key: value for key, value in values.items() if key in cls.__dataclass_fields__}
        held_out = tuple(Measured(**child) for child in values.pop("held_out"))
        return cls(**values, held_out=held_out)


def check_device(device: str) -> torch.device:
    """The device of that name, if this machine has it.

    Raises:
        InvalidInput: if there is no such device.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise InvalidInput(
            f"latency.device must be a device of this machine, {', '.join(there)}, but got "
            f"{device!r} ({str(error).splitlines()[0]}): name one of them, or run the command "
            f"where that device is"
        ) from None
    if found.type == "meta":
        raise InvalidInput(f"latency.device must be a device that computes, but got {device!r}")
    return found


class LatencyMeter:
    """Times children of a space with random weights on one device.

    Args:
        shape: its `max_length` is the length of the sequences.

    Raises:
        InvalidInput: if the machine lacks the device.
    """

    def __init__(
        self, space: SearchSpace, shape: TextShape, settings: LatencySettings, *, seed: int
    ) -> None:
        self._device = check_device(settings.device)
        self._space, self._settings = space, settings
        self._length = shape.max_length
        self._rng = random.Random(f"latency:{seed}")
        self._model = SuperNet(space, shape).to(self._device).eval()
        size = (settings.batch_size, self._length)
        self._ids_BT = torch.randint(0, shape.vocab_size, size, device=self._device)
        self._mask_BT = torch.ones(size, dtype=torch.bool, device=self._device)

    def table(self) -> LatencyTable:
        """Time every operator, then random children against their sum."""
        settings = self._settings
        with _threads(settings.threads), torch.inference_mode():
            operators_ms, ends_ms = self._operators()
            sums = LatencyTable("", {}, 0, ends_ms, operators_ms, ())
            held_out = self._compare(sums, self._random_children(settings.held_out))
        return LatencyTable(
            _name(self._device),
            settings.model_dump(mode="json"),
            self._length,
            ends_ms,
            operators_ms,
            held_out,
        )

    def compare(
        self, table: LatencyTable, architectures: Sequence[Architecture]
    ) -> tuple[Measured, ...]:
        """Whole children, as predicted and as measured now."""
        with _threads(self._settings.threads), torch.inference_mode():
            return self._compare(table, architectures)

    def _operators(self) -> tuple[dict[str, float], float]:
        """The median of every operator, and what is left of whole children."""
        parts_ms: dict[str, list[float]] = defaultdict(list)
        left_ms: list[float] = []
        paths = [path for _ in range(WARM_UP) for path in self._block()]
        self._run_all(paths)
        for _ in range(self._settings.repeats):
            for path in self._block():
                for name, ms in zip(path.operators, self._time_layers(path), strict=True):
                    parts_ms[name].append(ms)
        operators_ms = {name: statistics.median(found) for name, found in parts_ms.items()}
        for _ in range(self._settings.repeats):
            for path in self._block():
                whole_ms = self._time(path)
                left_ms.append(whole_ms - sum(operators_ms[name] for name in path.operators))
        return operators_ms, statistics.median(left_ms)

    def _compare(
        self, table: LatencyTable, architectures: Sequence[Architecture]
    ) -> tuple[Measured, ...]:
        """In turn, so that what else the machine does meets all of them alike."""
        self._run_all([path for path in architectures for _ in range(WARM_UP)])
        times: dict[Architecture, list[float]] = defaultdict(list)
        for _ in range(self._settings.repeats):
            for path in architectures:
                times[path].append(self._time(path))
        return tuple(
            Measured(str(path), table.predict(path), statistics.median(times[path]))
            for path in architectures
        )

    def _block(self) -> Iterator[Architecture]:
        """Paths that together use every operator of every layer."""
        return self._space.covering(self._rng)

    def _random_children(self, count: int) -> list[Architecture]:
        return [self._space.sample(self._rng) for _ in range(count)]

    def _run_all(self, paths: Sequence[Architecture]) -> None:
        for path in paths:
            self._time(path)

    def _time(self, path: Architecture) -> float:
        """Milliseconds of a whole child, logits at every position included."""
        began = self._clock()
        hidden_BTD = self._model.hidden(path, self._ids_BT, self._mask_BT)
        self._model.head(hidden_BTD, self._model.stem.tokens.weight)
        return (self._clock() - began) * 1e3

    def _time_layers(self, path: Architecture) -> list[float]:
        """Milliseconds of each layer within a whole child."""
        last_BTD = self._model.stem(self._ids_BT)
        clocks = [self._clock()]
        for hidden_BTD in self._model.chain.states(last_BTD, self._mask_BT, path.operators):
            clocks.append(self._clock())
            last_BTD = hidden_BTD
        self._model.head(self._model.chain.leave(last_BTD), self._model.stem.tokens.weight)
        return [(end - start) * 1e3 for start, end in zip(clocks, clocks[1:], strict=False)]

    def _clock(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
