"""The benchmark of searchers on a small table made by hand."""

import itertools
import json

import numpy as np
import pytest

from benchmarks.searchers import SEARCHERS, read_table, regrets, scored, summarise


@pytest.fixture
def table(tmp_path):
    """81 architectures; choice 2 is worth a point in each layer, choice 1 half of one."""
    rows = {
        "".join(key): {"mean_acc": 90 + sum(map(int, key)) / 2}
        for key in itertools.product("012", repeat=4)
    }
    path = tmp_path / "table.json"
    path.write_text(json.dumps(rows))
    return read_table(path)


def test_the_table_reads_digits_as_operators_by_layer(table):
    assert len(table) == 81
    assert table["kernel5-identity-identity-kernel3"] == 91.5


def test_regret_is_the_distance_of_the_best_so_far_to_the_best_of_all(table):
    assert list(regrets(table, [90.0, 93.0, 91.0, 94.0])) == [4.0, 1.0, 1.0, 0.0]


def test_a_search_of_all_children_scores_each_once(table):
    assert sorted(scored(table, "random", evaluations=81, seed=1)) == sorted(table.values())


@pytest.mark.parametrize("searcher", SEARCHERS.values())
def test_every_searcher_runs_and_seeds_differ(table, searcher):
    first, again, other = (scored(table, searcher, evaluations=15, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 15 and first == again != other


def test_the_difference_to_random_search_is_paired_by_seed():
    noise_SE = np.arange(20.0)[:, None]
    found = summarise({"random": noise_SE + 1.0, "evolution": noise_SE})
    assert found["regret"]["evolution"]["estimate"] == pytest.approx(9.5)
    assert found["over_random"] == {"evolution": {"estimate": -1.0, "low": -1.0, "high": -1.0}}
