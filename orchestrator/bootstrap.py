"""Statistics with 95 % intervals by bootstrap over groups, for rows that depend within a group.

A replicate draws as many groups as there are, with replacement, and counts each row as often as
its group was drawn; an interval runs between percentiles 2.5 and 97.5 of the replicates.

R: replicates, of which number 0 is the sample itself; G: groups; N: rows; U: distinct values.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_CELLS = 2_000_000
"""Of an R x N table at a time, which bounds the memory."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval; None where the rows do not determine it."""

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Plain values."""
        return asdict(self)


class GroupBootstrap:
    """Draws groups once, so that every statistic is taken over the same replicates.

    Args:
        num_groups: groups are numbered from 0.
        replicates: how many.
        seed: same seed, same draws.
    """

    def __init__(self, num_groups: int, *, replicates: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        drawn_RG = rng.multinomial(num_groups, np.full(num_groups, 1 / num_groups), size=replicates)
        self._counts_RG = np.vstack([np.ones(num_groups), drawn_RG])

    def mean(self, values: ArrayLike, groups: ArrayLike) -> Estimate:
        """Mean of the rows' values; `groups` holds each row's group."""
        values_N, groups_N = np.asarray(values, float), np.asarray(groups, int)
        num_groups = self._counts_RG.shape[1]
        sums_G = np.bincount(groups_N, values_N, num_groups)
        with np.errstate(invalid="ignore"):
            means_R = (self._counts_RG @ sums_G) / (
                self._counts_RG @ np.bincount(groups_N, minlength=num_groups)
            )
        return _estimate(means_R)

    def spearman(self, x: ArrayLike, y: ArrayLike, groups: ArrayLike) -> Estimate:
        """Spearman's rank correlation over all rows, ties at their mean rank."""
        groups_N = np.asarray(groups, int)
        return self.spearman_within(x, y, groups_N, np.zeros_like(groups_N))

    def spearman_within(
        self, x: ArrayLike, y: ArrayLike, groups: ArrayLike, strata: ArrayLike
    ) -> Estimate:
        """Mean over the strata of Spearman's correlation inside each, weighted by their rows.

        What is fixed within a stratum cannot confound it. Strata in which one side is constant
        are left out. `strata` holds each row's stratum as an integer.
        """
        x_N, y_N = np.asarray(x, float), np.asarray(y, float)
        groups_N, strata_N = np.asarray(groups, int), np.asarray(strata, int)
        total_R, rows_R = np.zeros((2, len(self._counts_RG)))
        for stratum in np.unique(strata_N):
            inside_N = strata_N == stratum
            counts_R, found_R = self._correlate(x_N[inside_N], y_N[inside_N], groups_N[inside_N])
            counts_R = np.where(np.isnan(found_R), 0.0, counts_R)
            total_R += counts_R * np.nan_to_num(found_R)
            rows_R += counts_R
        with np.errstate(invalid="ignore"):
            return _estimate(total_R / rows_R)

    def _correlate(
        self, x_N: Floats, y_N: Floats, groups_N: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """For each replicate how many rows it has, and their rank correlation."""
        ranks_of_x, ranks_of_y = _weighted_ranks(x_N), _weighted_ranks(y_N)
        counts, found = [], []
        for weights_RN in self._weights(groups_N):
            counts.append(weights_RN.sum(1))
            found.append(_correlation(ranks_of_x(weights_RN), ranks_of_y(weights_RN), weights_RN))
        return np.concatenate(counts), np.concatenate(found)

    def _weights(self, groups_N: NDArray[np.int64]) -> Iterator[Floats]:
        size = max(1, _CELLS // max(1, len(groups_N)))
        for start in range(0, len(self._counts_RG), size):
            yield self._counts_RG[start : start + size, groups_N]


def _weighted_ranks(values_N: Floats) -> Callable[[Floats], Floats]:
    """From weights (R, N) to ranks (R, N), as if each row were there as often as its weight."""
    _, places_N, sizes_U = np.unique(values_N, return_inverse=True, return_counts=True)
    order_N, starts_U = np.argsort(places_N, kind="stable"), np.cumsum(sizes_U) - sizes_U

    def ranks(weights_RN: Floats) -> Floats:
        tied_RU = np.add.reduceat(weights_RN[:, order_N], starts_U, axis=1)
        ranks_RN: Floats = (np.cumsum(tied_RU, axis=1) - tied_RU / 2)[:, places_N]
        return ranks_RN

    return ranks


def _correlation(x_RN: Floats, y_RN: Floats, weights_RN: Floats) -> Floats:
    """Weighted Pearson correlation of each line; NaN where one side is constant."""
    total_R1 = weights_RN.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_RN = x_RN - (weights_RN * x_RN).sum(1, keepdims=True) / total_R1
        y_RN = y_RN - (weights_RN * y_RN).sum(1, keepdims=True) / total_R1
        spread_R = (weights_RN * x_RN**2).sum(1) * (weights_RN * y_RN**2).sum(1)
        found_R: Floats = (weights_RN * x_RN * y_RN).sum(1) / np.sqrt(spread_R)
    return np.where(spread_R > 1e-9, found_R, np.nan)


def _estimate(found_R: Floats) -> Estimate:
    """Replicates that are not determined are left out."""
    drawn = found_R[1:][~np.isnan(found_R[1:])]
    if np.isnan(found_R[0]) or not len(drawn):
        return Estimate(None, None, None)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(float(found_R[0]), float(low), float(high))
