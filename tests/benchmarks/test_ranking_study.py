import dataclasses
import random
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from benchmarks.fair_walk import FairWalk
from benchmarks.ranking import METHODS, PARTS, SUPERNET, TRUTH, Method
from benchmarks.ranking_pool import Results
from benchmarks.ranking_summary import favour, visits_rho
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
    averaged = METHODS["MAGIC-A"].align | {"teacher_decay": 0.99}
    sampler = METHODS["MAGIC-A"].sampler
    tasks.append(Task("supernet", "name", 0, SUPERNET, (CHILD,), sampler, averaged))
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
    own = np.array([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])  # a seed is never compared with its own
    assert visits_rho(tasks[:1], own[:1], own) == pytest.approx(1.0)
    assert visits_rho(tasks, np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]), base) == pytest.approx(0)


def test_what_a_predictor_favours_is_told_apart_from_errors_that_look_at_no_operator() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, size=400).astype(float)
    truth = counts + rng.normal(size=400)  # children with many of the operator are bad
    blind = truth + rng.normal(size=400)
    assert abs(favour(counts, blind, truth)) < 0.1
    assert favour(counts, blind - counts, truth) > 0.25
    assert favour(counts, blind + counts, truth) < -0.25


def test_a_task_scores_with_the_last_weights_and_with_averaged_ones(tmp_path, monkeypatch) -> None:
    from benchmarks import ranking_tasks
    from benchmarks.workload import prepare_text

    monkeypatch.setattr(ranking_tasks, "INHERITED_SEQUENCES", 8)
    monkeypatch.setattr(ranking_tasks, "TRUTH_SEQUENCES", 8)
    monkeypatch.delenv("MAGIC_NAS_DATA", raising=False)
    text = prepare_text(tmp_path / "data", vocab_size=64, length=16)
    text.summary.save(text.folder)
    (text.folder / "valid").symlink_to(text.folder / "train")
    recipe = {**SUPERNET, "steps": 40, "warmup_steps": 1, "batch_size": 4}
    children = (CHILD, CHILD.replace("conv3", "ff64"))
    task = Task("supernet", "SPOS", 0, recipe, children, {"name": "uniform"})
    rows = ranking_tasks.run_task(task, str(text.folder))
    assert [row["architecture"] for row in rows] == list(children)
    assert all(row["task"] == task.key and row["loss_nats"] > 0 for row in rows)
    assert all(row["averaged_loss_nats"] != row["loss_nats"] for row in rows)
    assert ranking_tasks.run_task(task, str(text.folder))[0]["loss_nats"] == rows[0]["loss_nats"]


def test_the_summary_compares_methods_the_right_way_round(tmp_path, monkeypatch) -> None:
    from benchmarks import ranking_summary
    from benchmarks.workload import prepare_text

    monkeypatch.delenv("MAGIC_NAS_DATA", raising=False)
    text = prepare_text(tmp_path / "data", vocab_size=64, length=16)
    summary = dataclasses.replace(text.summary, unigram_nats={"valid": 4.0})
    summary.save(text.folder)
    rng, space = np.random.default_rng(0), SPACE.build()
    children = tuple(str(space.sample(random.Random(n))) for n in range(30))
    truth = {child: rng.normal() for child in children}
    tasks = [Task("truth", child, seed, TRUTH, (child,)) for child in children for seed in (0, 1)]
    results = Results(tmp_path / "work", tmp_path / "none")
    for task in tasks:
        loss = truth[task.name] + 0.1 * rng.normal()
        results.add(task, [{"task": task.key, "architecture": task.name, "loss_nats": loss}])
    for name, noise in (("SPOS", 3.0), ("MAGIC-A", 0.1)):
        for seed in (0, 1):
            method = METHODS[name]
            task = Task("supernet", name, seed, SUPERNET, children, method.sampler, method.align)
            tasks.append(task)
            rows = [
                {
                    "task": task.key,
                    "architecture": child,
                    "loss_nats": (loss := truth[child] + noise * rng.normal()),
                    "averaged_loss_nats": loss,
                    "train_s": 1.0,
                }
                for child in children
            ]
            results.add(task, rows)
    found = ranking_summary.summarise(tasks, results, text.folder)
    better = found["methods"]["MAGIC-A"]
    assert better["over_spos"]["estimate"] > 0.3 and better["tau"]["estimate"] > 0.8
    assert found["methods"]["SPOS"]["over_spos"] is None
    assert 0.8 < found["ceiling_tau"] < found["reachable_tau"] <= 1
    assert all(part["below_spos"]["estimate"] < 1 for part in found["predictors"].values())


class Alternating:
    def __init__(self, space, *, seed: int, phase: int = 0) -> None:
        self._layers = len(space.layers)

    def plan(self, start: int, count: int) -> list[tuple[Architecture, ...]]:
        names = ["conv5" if step % 3 == 0 else "conv3" for step in range(start, start + count)]
        return [(Architecture((name,) * self._layers),) for name in names]
