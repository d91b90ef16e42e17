"""What a search optimises: one metric or several, each to be made small or large.

Imports neither Ray nor torch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from supernet.errors import InvalidInput

Mode = Literal["min", "max"]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Objectives:
    """Metric names with "min" or "max"; the first ranks the leaderboard."""

    modes: tuple[tuple[str, Mode], ...] = (("val_loss_nats", "min"),)

    @classmethod
    def of(cls, modes: Mapping[str, Mode]) -> "Objectives":
        """From what the configuration holds."""
        return cls(tuple(modes.items()))

    @property
    def names(self) -> list[str]:
        """The metrics, the first one first."""
        return [name for name, _ in self.modes]

    @property
    def first(self) -> str:
        """The metric that ranks."""
        return self.modes[0][0]

    def losses(self, metrics: Metrics) -> tuple[float, ...]:
        """The objectives' values, signed so that less is better.

        Raises:
            InvalidInput: if the metrics lack one.
        """
        missing = [name for name in self.names if name not in metrics]
        if missing:
            raise InvalidInput(
                f"search.objectives must be among the metrics of a child, {sorted(metrics)}, but "
                f"got {missing[0]!r}"
            )
        return tuple(
            metrics[name] if mode == "min" else -metrics[name] for name, mode in self.modes
        )


DEFAULT_OBJECTIVES = Objectives()


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether `one` is at least as good in every loss and better in one; less is better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


class Front:
    """The points that no other point dominates, kept up as points come; less is better."""

    def __init__(self) -> None:
        self.points: list[tuple[float, ...]] = []

    def add(self, point: tuple[float, ...]) -> bool:
        """Whether the point belongs to the front; those that it dominates leave it."""
        if any(dominates(there, point) or there == point for there in self.points):
            return False
        self.points = [there for there in self.points if not dominates(point, there)]
        self.points.append(point)
        return True


def undominated(losses_NM: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of N points with M losses no other point dominates, (N,)."""
    keep_N = np.zeros(len(losses_NM), dtype=bool)
    front_FM = losses_NM[:0]
    for n in np.lexsort(losses_NM.T[::-1]):  # so that none is dominated by a later one
        point_M = losses_NM[n]
        beaten = (front_FM <= point_M).all(axis=1) & (front_FM < point_M).any(axis=1)
        if not beaten.any():
            keep_N[n] = True
            front_FM = np.vstack([front_FM, point_M])
    return keep_N


def hypervolume(points: Iterable[Sequence[float]], reference: Sequence[float]) -> float:
    """The volume that the points dominate within the reference point; less is better.

    By slices along the last objective, exact for any number of them (While et al., IEEE TEVC 2006,
    call it HSO).
    """
    inside = [tuple(p) for p in points if all(a < r for a, r in zip(p, reference, strict=True))]
    return _volume(inside, tuple(reference))


def _volume(points: list[tuple[float, ...]], reference: tuple[float, ...]) -> float:
    if not points:
        return 0.0
    if len(reference) == 1:
        return reference[0] - min(point[0] for point in points)
    ordered = sorted(points, key=lambda point: point[-1])
    ends = [point[-1] for point in ordered[1:]] + [reference[-1]]
    volume, below = 0.0, Front()
    for point, end in zip(ordered, ends, strict=True):
        below.add(point[:-1])
        volume += _volume(below.points, reference[:-1]) * (end - point[-1])
    return volume


def hypervolume_over_time(points: Sequence[tuple[float, ...] | None]) -> Iterator[float]:
    """The hypervolume after each point, as a share of the box from the best to the worst value
    of every objective over all points; None, a child that failed, adds nothing.

    Our own choice of reference: the worst value seen, so that runs of one search compare, and
    searches among one another do not.
    """
    seen = [point for point in points if point is not None]
    best = [min(values) for values in zip(*seen, strict=True)]
    worst = [max(values) for values in zip(*seen, strict=True)]
    spans = [high - low or 1.0 for low, high in zip(best, worst, strict=True)]
    front, value = Front(), 0.0
    for point in points:
        if point is not None:
            scaled = tuple((v - b) / s for v, b, s in zip(point, best, spans, strict=True))
            if front.add(scaled):
                value = hypervolume(front.points, [1.0] * len(spans))
        yield value
