from collections import Counter

import numpy as np
import pandas as pd
import pytest

from benchmarks.fair_walk import FairWalk
from benchmarks.ranking import METHODS, PARTS, SUPERNET, TRUTH, Method
from benchmarks.ranking_pool import Results
from benchmarks.ranking_summary import visits_rho
from benchmarks.ranking_tasks import SPACE, Task
from supernet.space import Architecture

CHILD = "-".join(["conv3"] * SPACE.layers)


def test_the_fair_walk_changes_one_operator_and_uses_all_equally_often() -> None:
    space = SPACE.build()
    layers, candidates = len(space.layers), len(space.operators)
    paths = [path.operators for (path,) in FairWalk(space, seed=3).plan(0, 5 * layers * candidates)]
    differing = [
        sum(a != b for a, b in zip(one, other, strict=True))
        for one, other in zip(paths, paths[1:], strict=False)
    ]
    assert set(differing) == {1}
    for layer in range(layers):
        counts = Counter(path[layer] for path in paths).values()
        assert len(counts) == candidates and max(counts) - min(counts) <= 2 * layers


def test_the_fair_walk_is_a_function_of_the_step() -> None:
    space = SPACE.build()
    assert FairWalk(space, seed=3).plan(500, 7) == FairWalk(space, seed=3).plan(490, 30)[10:17]
    assert FairWalk(space, seed=3).plan(0, 20) != FairWalk(space, seed=4).plan(0, 20)


def test_the_parts_of_the_study_share_no_child() -> None:
    taken: set[str] = set()
    for part in PARTS:
        children = part.children(taken)
        assert len(set(children)) == part.num_children and not taken & set(children)
        taken |= set(children)


def test_the_parts_of_the_study_share_no_seed() -> None:
    seeds = [{*part.truth_seeds, *part.supernet_seeds} for part in PARTS]
    assert sum(map(len, seeds)) == len(set.union(*seeds))


def test_a_tasks_key_tells_apart_what_trains_differently() -> None:
    tasks = [
        Task("truth", CHILD, 0, TRUTH, (CHILD,)),
        Task("truth", CHILD, 1, TRUTH, (CHILD,)),
        Task("truth", CHILD, 0, SUPERNET, (CHILD,)),
        *(
            Task("supernet", "name", 0, SUPERNET, (CHILD,), method.sampler, method.align)
            for method in (
                METHODS["SPOS"],
                METHODS["MAGIC-T"],
                METHODS["MAGIC-A"],
                Method({"name": "uniform"}, {"weight": 0.5}),
            )
        ),
    ]
    assert len({task.key for task in tasks}) == len(tasks)
    assert tasks[0].key == Task("truth", CHILD, 0, dict(TRUTH), (CHILD,)).key


def test_results_are_found_again_in_the_work_folder_and_in_the_repository(tmp_path) -> None:
    one, other = (Task("truth", CHILD, seed, TRUTH, (CHILD,)) for seed in (0, 1))
    committed = tmp_path / "results" / "ranking.parquet"
    results = Results(tmp_path / "work", committed)
    results.add(one, [{"task": one.key, "architecture": CHILD, "loss_nats": 3.5}])
    results.write([one, other])
    assert pd.read_parquet(committed)["loss_nats"].tolist() == [3.5]
    for again in (
        Results(tmp_path / "work", tmp_path / "none"),
        Results(tmp_path / "w2", committed),
    ):
        assert one in again and other not in again
        assert again.losses(one) == [3.5]


def test_scores_that_follow_the_visits_are_found_out() -> None:
    """`alternating` trains conv3 everywhere in two of three steps, and conv5 in the third."""
    children = tuple("-".join([name] * SPACE.layers) for name in ("conv3", "conv5", "conv7"))
    recipe = {**SUPERNET, "steps": 30}
    tasks = [
        Task("supernet", "m", seed, recipe, children, {"name": f"{__name__}:Alternating"})
        for seed in (0, 1)
    ]
    base = np.zeros((2, 3))
    assert visits_rho(tasks, np.array([[1.0, 2.0, 3.0]] * 2), base) == pytest.approx(1.0)
    assert visits_rho(tasks, np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), base) == pytest.approx(0)


class Alternating:
    def __init__(self, space, *, seed: int, phase: int = 0) -> None:
        self._layers = len(space.layers)

    def plan(self, start: int, count: int) -> list[tuple[Architecture, ...]]:
        names = ["conv5" if step % 3 == 0 else "conv3" for step in range(start, start + count)]
        return [(Architecture((name,) * self._layers),) for name in names]
