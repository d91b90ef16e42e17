"""Rank statistics against SciPy and hand-made values; what their intervals cover and find."""

import time
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluators.rank_statistics import (
    additive_fit_predictions,
    bootstrap_interval,
    ceiling_tau,
    kendall_tau,
    paired_difference,
    pairwise_accuracy,
    reachable_tau,
    spearman_rho,
    top_k_regret,
)
from supernet.errors import InvalidInput


def noisy(truth: Any, noise: float, rng: np.random.Generator, seeds: int = 1) -> Any:
    """Scores of some super-net seeds: the truth and independent noise."""
    return truth + noise * rng.standard_normal((seeds, len(truth)))


@pytest.mark.parametrize("levels", [4, 1000], ids=["with ties", "without ties"])
def test_tau_and_rho_are_scipys(levels: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(levels, size=(2, 15))
        assert kendall_tau(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
        assert spearman_rho(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_statistics_of_four_children_are_those_counted_by_hand() -> None:
    truth, predicted = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]
    assert kendall_tau(predicted, truth) == pytest.approx((5 - 1) / 6)
    assert pairwise_accuracy(predicted, truth) == pytest.approx(5 / 6)
    assert pairwise_accuracy([1, 1, 2, 3], truth) == pytest.approx(5.5 / 6)
    assert pairwise_accuracy(predicted, [1, 1, 2, 3]) == pytest.approx(4 / 5)


def test_lower_is_better_on_both_sides() -> None:
    assert kendall_tau([1, 2, 3], [5, 6, 7]) == spearman_rho([1, 2, 3], [5, 6, 7]) == 1
    assert kendall_tau([3, 2, 1], [5, 6, 7]) == spearman_rho([3, 2, 1], [5, 6, 7]) == -1


def test_regret_is_what_the_best_of_the_predicted_best_loses() -> None:
    truth, predicted = [5.0, 5.5, 5.1, 6.0], [3, 1, 2, 4]
    assert [top_k_regret(predicted, truth, k) for k in (1, 2, 3)] == pytest.approx([0.5, 0.1, 0])


def test_a_copy_of_a_child_takes_no_second_place_in_the_top() -> None:
    assert top_k_regret([1, 1, 2, 3], [6.0, 6.0, 5.0, 5.5], 2) == 0


def test_of_tied_predictions_the_worst_child_comes_first() -> None:
    assert top_k_regret([1, 1, 1], [5.0, 6.0, 5.5], 1) == 1.0


def test_leading_axes_are_averaged() -> None:
    truth, scores = [1, 2, 3], [[1, 2, 3], [3, 2, 1], [1, 3, 2]]
    each = [kendall_tau(row, truth) for row in scores]
    assert kendall_tau(scores, truth) == pytest.approx(np.mean(each)) == pytest.approx(1 / 9)
    assert top_k_regret(scores, truth, 1) == pytest.approx(2 / 3)


def test_a_constant_prediction_has_no_tau() -> None:
    assert np.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert np.isnan(bootstrap_interval(kendall_tau, ([1, 1, 1], [1, 2, 3])).low)


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("seeds", [2, 4])
def test_what_a_perfect_predictor_reaches_is_estimated_from_the_seeds(
    noise: float, seeds: int
) -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=2000)
    truth = true + noise * rng.normal(size=(seeds, 2000))
    assert reachable_tau(truth) == pytest.approx(kendall_tau(true, truth.mean(0)), abs=0.02)
    assert reachable_tau(truth) > ceiling_tau(truth)


def test_seeds_that_agree_on_nothing_or_are_one_reach_nothing() -> None:
    assert reachable_tau([[1, 2, 3], [3, 2, 1]]) == 0.0
    assert np.isnan(reachable_tau([[1, 2, 3]]))


def test_the_ceiling_is_the_mean_tau_of_the_pairs_of_seeds() -> None:
    seeds = [[1, 2, 3], [1, 3, 2], [3, 2, 1]]
    assert ceiling_tau(seeds) == pytest.approx((1 / 3 - 1 - 1 / 3) / 3)
    assert np.isnan(ceiling_tau(seeds[:1]))


@pytest.mark.parametrize(
    ("predicted", "truth"), [([1], [1]), ([1, 2], [1, 2, 3]), ([1, np.nan], [1, 2]), (1.0, [1, 2])]
)
def test_what_cannot_be_ranked_is_refused(predicted: Any, truth: Any) -> None:
    with pytest.raises(InvalidInput):
        kendall_tau(predicted, truth)


def test_copies_of_resampled_children_do_not_move_tau() -> None:
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(30)
    predicted = noisy(truth, 1.0, rng)[0]
    drawn = rng.integers(30, size=(4000, 30))
    taus = [kendall_tau(predicted[one], truth[one]) for one in drawn]
    assert np.mean(taus) == pytest.approx(kendall_tau(predicted, truth), abs=0.01)


def test_the_interval_is_repeatable_and_holds_the_estimate() -> None:
    rng = np.random.default_rng(2)
    truth = rng.standard_normal(40)
    columns = (noisy(truth, 1.0, rng), truth)
    interval = bootstrap_interval(kendall_tau, columns, replicates=300, seed=5)
    assert interval == bootstrap_interval(kendall_tau, columns, replicates=300, seed=5)
    assert interval != bootstrap_interval(kendall_tau, columns, replicates=300, seed=6)
    assert -1 < interval.low < interval.estimate < interval.high < 1


def test_columns_of_other_children_are_refused() -> None:
    with pytest.raises(InvalidInput, match="same children"):
        bootstrap_interval(kendall_tau, ([1, 2, 3], [1, 2]))


def test_the_interval_of_tau_covers_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(3)
    expected = 2 / np.pi * np.arcsin(np.sqrt(0.5))  # of two normals with correlation sqrt(0.5)
    covered = 0
    for trial in range(200):
        truth = rng.standard_normal(60)
        columns = (noisy(truth, 1.0, rng), truth)
        interval = bootstrap_interval(kendall_tau, columns, replicates=200, seed=trial)
        covered += interval.low <= expected <= interval.high
    assert 0.89 <= covered / 200 <= 0.985


def test_a_planted_difference_is_found_and_has_its_sign() -> None:
    rng = np.random.default_rng(4)
    truth = rng.standard_normal(60)
    seeds = noisy(truth, 0.1, rng, seeds=2)
    better, worse = noisy(truth, 0.5, rng, seeds=5), noisy(truth, 2.0, rng, seeds=5)
    assert paired_difference(better, worse, seeds).low > 0
    assert paired_difference(worse, better, seeds).high < 0


def test_the_difference_of_equal_methods_is_found_at_most_one_time_in_twenty() -> None:
    rng = np.random.default_rng(5)
    found = 0
    for trial in range(150):
        truth = rng.standard_normal(200)
        # A seed's skill varies, and more than the choice of children matters.
        a, b = (
            np.concatenate([noisy(truth, rng.uniform(0.5, 2.0), rng) for _ in range(3)])
            for _ in range(2)
        )
        interval = paired_difference(a, b, truth, replicates=200, seed=trial)
        found += not interval.low <= 0 <= interval.high
    assert 0.005 <= found / 150 <= 0.09


def test_two_seeds_that_disagree_leave_the_difference_wide_open() -> None:
    truth = np.arange(20.0)
    agree, opposite = np.stack([truth, truth]), np.stack([truth, -truth])
    alike = paired_difference(agree, agree[::-1], truth)
    assert (alike.estimate, alike.low, alike.high) == pytest.approx((0, 0, 0))
    wide = paired_difference(opposite, agree, truth)
    assert wide.estimate == pytest.approx(-1)
    assert wide.low < -2 and wide.high > 0


def test_seeds_are_paired() -> None:
    truth = np.arange(20.0)
    good_and_bad = np.stack([truth, -truth, truth])
    same = paired_difference(good_and_bad, good_and_bad, truth)
    assert (same.low, same.high) == pytest.approx((0, 0))
    with pytest.raises(InvalidInput, match="the same super-net seeds, but got 3 and 2"):
        paired_difference(good_and_bad, good_and_bad[:2], truth)


def test_pairing_narrows_the_difference_of_methods_that_err_alike() -> None:
    rng = np.random.default_rng(6)
    truth = rng.standard_normal(60)
    common = noisy(truth, 1.0, rng)
    a, b = noisy(common[0], 0.05, rng, seeds=3), noisy(common[0], 0.05, rng, seeds=3)
    difference = paired_difference(a, b, truth)
    alone = bootstrap_interval(kendall_tau, (a, truth), replicates=500)
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)


def test_the_weighted_taus_of_the_difference_are_those_of_the_resampled_children() -> None:
    rng = np.random.default_rng(7)
    truth = rng.standard_normal(40)
    score = noisy(truth, 1.0, rng)
    against_the_truth = paired_difference(truth[None], score, truth, replicates=4000)
    plain = bootstrap_interval(kendall_tau, (score, truth), replicates=4000)
    assert against_the_truth.estimate == pytest.approx(1 - plain.estimate)
    assert against_the_truth.low == pytest.approx(1 - plain.high, abs=0.015)
    assert against_the_truth.high == pytest.approx(1 - plain.low, abs=0.015)


def test_two_thousand_replicates_of_sixty_children_and_five_seeds_take_seconds() -> None:
    rng = np.random.default_rng(8)
    truth = rng.standard_normal(60)
    scores = noisy(truth, 1.0, rng, seeds=5)
    began = time.process_time()
    bootstrap_interval(kendall_tau, (scores, truth))
    paired_difference(scores, scores, truth)
    assert time.process_time() - began < 10


def choices(children: int, rng: np.random.Generator, layers: int = 6, operators: int = 4) -> Any:
    return np.eye(operators)[rng.integers(operators, size=(children, layers))].reshape(children, -1)


def test_the_additive_fit_ranks_an_additive_loss() -> None:
    rng = np.random.default_rng(9)
    one_hot = choices(60, rng)
    truth = one_hot @ rng.standard_normal(24)
    assert kendall_tau(additive_fit_predictions(one_hot, truth), truth) > 0.75


def test_choices_that_say_nothing_rank_nothing() -> None:
    truth = np.random.default_rng(11).standard_normal(20)
    assert len(set(additive_fit_predictions(np.ones((20, 3)), truth))) == 1


def test_the_additive_fit_never_sees_what_it_predicts() -> None:
    rng = np.random.default_rng(10)
    taus = []
    for trial in range(60):
        one_hot, truth = choices(60, rng), rng.standard_normal(60)
        taus.append(kendall_tau(additive_fit_predictions(one_hot, truth, seed=trial), truth))
    assert abs(np.mean(taus)) < 0.05


@pytest.mark.parametrize("bad", [{"folds": 1}, {"folds": 11}, {"ridge": 0.0}])
def test_settings_that_no_fit_can_have_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        additive_fit_predictions(np.eye(10), np.arange(10.0), **bad)
