"""Children scored by a user's own function, with what a row needs around it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from supernet.cost import Cost
from supernet.space import Architecture

OwnScore = Callable[[Architecture], Mapping[str, float]]
RESERVED = ("architecture", "rank", "wall_s", "supernet_version", "error", "batch_id")
"""Names that a row has of its own."""


class OwnScorer:
    """Rows from a user's function of an architecture.

    Args:
        score: gives a child's metrics, finite numbers by name.
        version: stands in the rows as `supernet_version`.
        objectives: names that the metrics must hold.
        costs: of a child by formula; they stand in its row unless the function gives its own.
    """

    peak_activation_mib = 0.0

    def __init__(
        self,
        score: OwnScore,
        *,
        version: str,
        objectives: Sequence[str],
        costs: Callable[[Architecture], Cost] | None = None,
    ) -> None:
        self._score = score
        self._costs = costs
        self._version = version
        self._objectives = objectives

    def rows(self, architectures: Sequence[Architecture]) -> list[dict[str, Any]]:
        """A row per child; where the function raises or gives no metrics, with the error."""
        return [self._row(architecture) for architecture in architectures]

    def _row(self, architecture: Architecture) -> dict[str, Any]:
        began, error = time.perf_counter(), None
        metrics = self._costs(architecture).metrics() if self._costs else {}
        try:
            metrics |= self._checked(metrics, self._score(architecture))
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        return {
            "architecture": str(architecture),
            **metrics,
            "wall_s": time.perf_counter() - began,
            "supernet_version": self._version,
            "error": error,
        }

    def _checked(self, costs: Mapping[str, float], metrics: Any) -> dict[str, float]:
        if not isinstance(metrics, Mapping):
            raise ValueError(f"a score must be metrics by name, but got {metrics!r}")
        missing = [name for name in self._objectives if name not in {**costs, **metrics}]
        if missing:
            raise ValueError(
                f"a score must hold {missing[0]!r}, an objective of the search, but holds "
                f"{sorted(map(str, metrics))}"
            )
        for name, value in metrics.items():
            if not isinstance(name, str) or name in RESERVED:
                raise ValueError(f"a metric must have a name other than {RESERVED}, not {name!r}")
            if not isinstance(value, Real) or not math.isfinite(value):
                raise ValueError(f"metric {name!r} must be a finite number, but is {value!r}")
        return {name: _plain(value) for name, value in metrics.items()}


def _plain(value: Real) -> float:
    """A whole number stays one, so that counts read as counts."""
    return int(value) if isinstance(value, int) else float(value)
