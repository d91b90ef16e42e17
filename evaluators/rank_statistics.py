"""How well predicted scores rank children as their true losses do, with bootstrap intervals.

Plain arrays with the children on the last axis; lower is better, in predictions and in truth, so
+1 is full agreement. No models in here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata, t

from supernet.errors import InvalidInput

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A statistic of the children at hand, and the ends of its bootstrap interval."""

    estimate: float
    low: float
    high: float


def kendall_tau(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Kendall's tau-b, averaged over leading axes such as seeds; NaN where one side is constant.

    Pairs that one side ties do not count on that side. So a resampled child is not compared with
    its own copies, which tie on both sides.

    Args:
        predicted: (…, children), broadcast against `truth`.
        truth: (…, children).

    Raises:
        InvalidInput: if there are fewer than two children, or a value is not finite.
    """
    x_SN, y_SN = _rows(predicted, truth)
    x_SNN, y_SNN = _signs(x_SN), _signs(y_SN)
    agreement_S = (x_SNN * y_SNN).sum((1, 2))
    pairs_S = np.sqrt(np.abs(x_SNN).sum((1, 2)) * np.abs(y_SNN).sum((1, 2)))
    return float(_divide(agreement_S, pairs_S).mean())


def spearman_rho(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Spearman's rho; arguments, averaging and errors as for `kendall_tau`.

    Ties share their mean rank, a resampled child's copies too.
    """
    x_SN, y_SN = (rankdata(rows, axis=-1) for rows in _rows(predicted, truth))
    x_SN, y_SN = (ranks - ranks.mean(-1, keepdims=True) for ranks in (x_SN, y_SN))
    norms_S = np.sqrt((x_SN**2).sum(-1) * (y_SN**2).sum(-1))
    return float(_divide((x_SN * y_SN).sum(-1), norms_S).mean())


def pairwise_accuracy(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> float:
    """Share of the pairs with different truth that are put in their order; a tie counts half.

    Arguments, averaging and errors as for `kendall_tau`; copies of a child are no pair.
    """
    x_SN, y_SN = _rows(predicted, truth)
    y_SNN = _signs(y_SN)
    agreement_S = (_signs(x_SN) * y_SNN).sum((1, 2))
    return float(0.5 + 0.5 * _divide(agreement_S, np.abs(y_SNN).sum((1, 2))).mean())


def top_k_regret(predicted: npt.ArrayLike, truth: npt.ArrayLike, k: int) -> float:
    """By how much the best of the k predicted best misses the best of all, in nats; 0 is perfect.

    A child that occurs more than once takes one place of the k. Of tied predictions the worst
    child comes first. Other arguments, averaging and errors as for `kendall_tau`.
    """
    if k < 1:
        raise InvalidInput(f"k >= 1 must hold for a top-k regret, but got {k=}")
    regrets = []
    for pair in zip(*_rows(predicted, truth), strict=True):
        x_N, y_N = np.unique(np.stack(pair), axis=1)
        first_k = np.lexsort((-y_N, x_N))[:k]
        regrets.append(y_N[first_k].min() - y_N.min())
    return float(np.mean(regrets))


def ceiling_tau(truth: npt.ArrayLike) -> float:
    """Mean tau between two seeds of the truth, (seeds, children); NaN where there is one seed.

    How well stand-alone training predicts itself. Both sides are noisy here, so a predictor
    without noise can reach more: see `reachable_tau`.
    """
    rows_SN = np.atleast_2d(np.asarray(truth, dtype=np.float64))
    taus = [kendall_tau(a_N, b_N) for a_N, b_N in combinations(rows_SN, 2)]
    return float(np.mean(taus)) if taus else float("nan")


def reachable_tau(truth: npt.ArrayLike) -> float:
    """Tau of a perfect predictor against the mean of the truth's seeds, (seeds, children).

    Estimated from how well the seeds agree, as if children and noise were normal: tau to
    correlation and back by Greiner's relation, the mean's reliability by Spearman and Brown's.
    NaN where there is one seed, 0 where seeds do not agree.
    """
    seeds = len(np.atleast_2d(np.asarray(truth)))
    between = np.sin(max(ceiling_tau(truth), 0.0) * np.pi / 2)
    reliability = seeds * between / (1 + (seeds - 1) * between)
    return float(np.arcsin(np.sqrt(reliability)) * 2 / np.pi)


def bootstrap_interval(
    statistic: Callable[..., float],
    columns: Sequence[npt.ArrayLike],
    *,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile interval of `statistic(*columns)`, resampling children with replacement.

    All columns take the same children, so they stay paired. Copies of a child are the statistic's
    business: those of this module allow for them. Replicates in which it is NaN are left out.

    Args:
        statistic: takes the columns, gives a number.
        columns: each (…, children).

    Raises:
        InvalidInput: if the columns differ in their children.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    count = arrays[0].shape[-1]
    if any(array.shape[-1] != count for array in arrays):
        raise InvalidInput(
            f"columns must have the same children, but got {[array.shape[-1] for array in arrays]}"
        )
    drawn_RN = np.random.default_rng(seed).integers(count, size=(replicates, count))
    values = [statistic(*(array[..., drawn_N] for array in arrays)) for drawn_N in drawn_RN]
    return _interval(statistic(*arrays), np.asarray(values), level)


def paired_difference(
    scores_a: npt.ArrayLike,
    scores_b: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    replicates: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of "mean tau of method a minus mean tau of method b"; positive: a ranks better.

    A hierarchical bootstrap, paired twice: a replicate draws children, the same for both methods,
    and super-net seeds, the same for both, since a seed's super-nets share their first weights and
    batches. Means of few drawn seeds have no tails, so their deviation from the mean of all m seeds
    is stretched by Student's t with m - 1 degrees of freedom over the normal quantile (our own
    choice: five in a hundred equal methods are then found different where seeds differ much, fewer
    elsewhere). One seed shows no variance between seeds: the interval then holds for those two
    super-nets alone.

    Args:
        scores_a: (super-net seeds, children).
        scores_b: (super-net seeds, children), of the same seeds.
        truth: (seeds, children) or (children,); its mean over seeds is ranked.

    Raises:
        InvalidInput: if the numbers of seeds differ, and as for `kendall_tau`.
    """
    rng = np.random.default_rng(seed)
    truth_N = np.atleast_2d(np.asarray(truth, dtype=np.float64)).mean(0)
    count = len(truth_N)
    weights_RN = rng.multinomial(count, np.full(count, 1 / count), size=replicates)
    taus_a_SR, taus_b_SR = (
        _weighted_taus(scores, truth_N, weights_RN) for scores in (scores_a, scores_b)
    )
    if len(taus_a_SR) != len(taus_b_SR):
        raise InvalidInput(
            f"both methods must have the same super-net seeds, but got {len(taus_a_SR)} and "
            f"{len(taus_b_SR)}"
        )
    difference_SR = taus_a_SR - taus_b_SR
    values_R = difference_SR.mean(0)
    seeds = len(difference_SR)
    if seeds > 1:
        drawn_SR = rng.integers(seeds, size=(seeds, replicates))
        deviation_R = np.take_along_axis(difference_SR, drawn_SR, axis=0).mean(0) - values_R
        tail = (1 + level) / 2
        values_R = values_R + deviation_R * t.ppf(tail, seeds - 1) / norm.ppf(tail)
    estimate = kendall_tau(scores_a, truth_N) - kendall_tau(scores_b, truth_N)
    return _interval(estimate, values_R, level)


def additive_fit_predictions(
    one_hot: npt.ArrayLike,
    truth: npt.ArrayLike,
    *,
    folds: int = 5,
    ridge: float = 1.0,
    seed: int = 0,
) -> Floats:
    """Held-out predictions of a ridge regression on one-hot choices, (children,).

    The constant is the mean of all children: a fold's own would be high where the losses that it
    holds out are low, and would turn the ranking around.

    Args:
        one_hot: (children, features).
        truth: (children,).
        ridge: penalty on the squared coefficients; the constant has none.

    Raises:
        InvalidInput: unless 2 <= folds <= children and ridge > 0.
    """
    x_NF, y_N = np.asarray(one_hot, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if not 2 <= folds <= len(y_N) or ridge <= 0:
        raise InvalidInput(
            f"2 <= folds <= children and ridge > 0 must hold, but got {folds=}, {len(y_N)} "
            f"children and {ridge=}"
        )
    order = np.random.default_rng(seed).permutation(len(y_N))
    predictions_N = np.full(len(y_N), y_N.mean())
    for held in np.array_split(order, folds):
        kept = np.setdiff1d(order, held)
        effects_F = _ridge_effects(x_NF[kept], y_N[kept], ridge)
        predictions_N[held] += (x_NF[held] - x_NF.mean(0)) @ effects_F
    return predictions_N


def _ridge_effects(x_NF: Floats, y_N: Floats, ridge: float) -> Floats:
    x_NF = x_NF - x_NF.mean(0)
    gram_FF = x_NF.T @ x_NF + ridge * np.eye(x_NF.shape[1])
    effects_F: Floats = np.linalg.solve(gram_FF, x_NF.T @ (y_N - y_N.mean()))
    return effects_F


def _weighted_taus(scores: npt.ArrayLike, truth_N: Floats, weights_RN: npt.NDArray[Any]) -> Floats:
    """tau-b of every row and replicate, (rows, replicates); a weight is how often a child is in."""
    x_SN, y_SN = _rows(scores, truth_N)
    weights_RN = weights_RN.astype(np.float64)

    def over_pairs(signs_NN: Floats) -> Floats:
        return np.asarray(((weights_RN @ signs_NN) * weights_RN).sum(1))

    truth_NN = _signs(y_SN)[0]
    truth_pairs_R = over_pairs(np.abs(truth_NN))
    rows = [
        _divide(over_pairs(x_NN * truth_NN), np.sqrt(over_pairs(np.abs(x_NN)) * truth_pairs_R))
        for x_NN in _signs(x_SN)
    ]
    return np.stack(rows)


def _rows(predicted: npt.ArrayLike, truth: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both sides as (rows, children)."""
    x = np.asarray(predicted, dtype=np.float64)
    y = np.asarray(truth, dtype=np.float64)
    if min(x.ndim, y.ndim) == 0 or x.shape[-1] != y.shape[-1] or x.shape[-1] < 2:
        raise InvalidInput(
            f"a ranking needs two children or more, the same on both sides, but got shapes "
            f"{x.shape} and {y.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InvalidInput("scores and losses must be finite: leave out children that failed")
    shape = np.broadcast_shapes(x.shape, y.shape)
    flat = (-1, shape[-1])
    return np.broadcast_to(x, shape).reshape(flat), np.broadcast_to(y, shape).reshape(flat)


def _signs(rows_SN: Floats) -> Floats:
    return np.sign(rows_SN[:, :, None] - rows_SN[:, None, :])


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)


def _interval(estimate: float, values_R: Floats, level: float) -> Interval:
    finite = values_R[np.isfinite(values_R)]
    if not len(finite):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(estimate), float(low), float(high))
