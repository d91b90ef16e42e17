"""Rank correlations and their intervals over groups, against scipy and on planted data."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from orchestrator.bootstrap import GroupBootstrap


def draws(groups: int = 20, replicates: int = 300) -> GroupBootstrap:
    return GroupBootstrap(groups, replicates=replicates, seed=0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_the_estimate_is_scipys_with_ties(rng: np.random.Generator) -> None:
    x = rng.integers(0, 5, 400)
    y = x + rng.integers(0, 9, 400)
    found = draws().spearman(x, y, rng.integers(0, 20, 400))
    assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_a_replicate_is_scipys_on_the_rows_that_it_repeats(rng: np.random.Generator) -> None:
    x, groups = rng.integers(0, 5, 60), rng.integers(0, 20, 60)
    y = x + rng.integers(0, 9, 60)
    bootstrap = draws()
    _, found_R = bootstrap._correlate(x.astype(float), y.astype(float), groups)
    for number in (1, 7, 299):
        rows = np.repeat(np.arange(60), bootstrap._counts_RG[number, groups].astype(int))
        assert found_R[number] == pytest.approx(spearmanr(x[rows], y[rows]).statistic, abs=1e-12)


def test_memory_is_bounded_without_changing_the_result(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rng.normal(size=50), rng.normal(size=50), rng.integers(0, 20, 50)
    whole = draws().spearman(*rows)
    monkeypatch.setattr("orchestrator.bootstrap._CELLS", 120)
    assert draws().spearman(*rows) == whole


def test_the_mean_has_the_interval_of_group_means(rng: np.random.Generator) -> None:
    effects, groups = rng.normal(size=100), np.repeat(np.arange(100), 30)
    found = draws(100, 2000).mean(5 + effects[groups], groups)
    assert found.value == pytest.approx(5 + effects.mean())
    assert found.low is not None and found.high is not None
    # Rows alone would give an interval narrower by the root of 30.
    assert found.high - found.low == pytest.approx(2 * 1.96 * effects.std() / 10, rel=0.15)


def test_intervals_cover_zero_where_there_is_no_relation(rng: np.random.Generator) -> None:
    covered = 0
    for _ in range(100):
        groups = np.repeat(np.arange(30), 20)
        x, y = (rng.normal(size=30)[groups] + rng.normal(size=600) for _ in range(2))
        found = draws(30).spearman(x, y, groups)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 88


def test_within_strata_a_confounder_is_gone_and_a_relation_stays(
    rng: np.random.Generator,
) -> None:
    strata, groups = rng.integers(0, 8, 2000), rng.integers(0, 20, 2000)
    x, noise = strata + 0.3 * rng.normal(size=2000), 0.3 * rng.normal(size=2000)
    confounded = draws().spearman(x, strata + noise, groups)
    within = draws().spearman_within(x, strata + noise, groups, strata)
    assert confounded.low is not None and confounded.low > 0.9
    assert within.low is not None and within.high is not None and within.low < 0 < within.high
    reversed_within = draws().spearman_within(x, 2 * strata - x + noise, groups, strata)
    assert reversed_within.high is not None and reversed_within.high < -0.5


def test_strata_weigh_by_their_rows_and_constant_ones_are_left_out() -> None:
    x = [1, 2, 3, 4, 1, 2, 5, 5, 5]
    y = [1, 2, 3, 4, 2, 1, 1, 2, 3]
    strata = [0, 0, 0, 0, 1, 1, 2, 2, 2]
    found = draws(9).spearman_within(x, y, range(9), strata)
    assert found.value == pytest.approx((4 * 1 + 2 * -1) / 6)


def test_what_the_rows_do_not_determine_is_none() -> None:
    assert draws(3).spearman([1, 1, 1], [1, 2, 3], [0, 1, 2]).value is None
    assert draws(3).spearman_within([1, 2, 3], [1, 2, 3], [0, 1, 2], [0, 1, 2]).low is None


def test_the_same_seed_gives_the_same_interval(rng: np.random.Generator) -> None:
    rows = rng.normal(size=50), rng.normal(size=50), rng.integers(0, 20, 50)
    assert draws().spearman(*rows) == draws().spearman(*rows)
