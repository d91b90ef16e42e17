"""One object per version of the weights, mapped by every evaluator and freed after it."""

import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.internal_api import memory_summary

from evaluators.evaluator import Evaluator
from orchestrator.config import parse
from orchestrator.on_ray.actors import EvaluatorActor, SuperNetActor
from orchestrator.on_ray.cluster import connect
from orchestrator.on_ray.names import actor_options
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import load_checkpoint, save_checkpoint, version_of
from supernet.model import meta_supernet
from supernet.space import Architecture

pytestmark = pytest.mark.ray
FIRST, SECOND = "supernet/step-00000001", "supernet/step-00000002"


@pytest.fixture
def large_run(trained_run: Path, tmp_path: Path) -> Run:
    """A run with two checkpoints of some 200 MB, on the tiny run's data."""
    shutil.copytree(trained_run / "data", tmp_path / "large" / "data")
    store = RunStore(tmp_path / "large")
    candidates = {
        "attention": {"kind": "attention"},
        "feed_forward": {"kind": "feed_forward", "inner_size": 4096},
    }
    values = Run.open(trained_run).config.model_dump(mode="json")
    values["space"] |= {"layers": 4, "hidden_size": 1024, "candidates": candidates}
    values["search"] |= {"valid_sequences": 4, "limits": ""}
    store.write_bytes("config.yaml", parse(values).to_yaml().encode())
    run = Run.open(store.uri)
    empty = meta_supernet(run.space, run.shape).to_empty(device="cpu").state_dict()
    for step in (1, 2):
        rng = np.random.default_rng(step)
        for tensor in empty.values():
            tensor.numpy()[...] = 0.02 * rng.standard_normal(tensor.shape, dtype=np.float32)
        save_checkpoint(store, "supernet", step=step, weights=empty, optimizer={}, extra={}, keep=2)
    return run


FREED_S = 60
"""Ray frees what nobody refers to any more some time later."""


@pytest.fixture
def supernet(cluster_address: str, large_run: Run) -> Iterator[Any]:
    with connect(cluster_address, user_code=None):
        actor = SuperNetActor.options(**actor_options(large_run, "supernet")).remote(
            large_run.store.uri
        )
        ray.get(actor.publish.remote(FIRST))
        yield actor
        ray.kill(actor)


def evaluators(run: Run, count: int) -> list[Any]:
    return [
        EvaluatorActor.options(**actor_options(run, f"evaluator-{number}")).remote(
            run.store.uri, FIRST
        )
        for number in range(count)
    ]


def stored_mib() -> float:
    """What the object stores of the cluster hold."""
    summary = memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    return sum(float(mib) for mib in re.findall(r"Plasma memory usage (\d+) MiB", summary))


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["val_loss_nats"] for row in rows]


def test_another_version_is_mapped_without_a_restart_and_the_old_one_freed(
    large_run: Run, supernet: Any
) -> None:
    children = ["-".join(["attention", "feed_forward"] * 2), "-".join(["attention"] * 4)]
    pool = evaluators(large_run, 2)
    scored, pids, versions = {}, [], []
    weights_mib = 0.0
    for name in (FIRST, SECOND):
        if name == SECOND:
            versions = ray.get([each.load.remote(name) for each in pool])
        found = ray.get([each.score_together.remote(children) for each in pool])
        assert losses(found[0]) == losses(found[1])
        scored[name] = losses(found[0])
        pids.append(ray.get([each.__ray_call__.remote(lambda _: os.getpid()) for each in pool]))
        weights_mib = weights_mib or stored_mib()
    assert weights_mib > 150
    until = time.monotonic() + FREED_S
    while stored_mib() > 1.05 * weights_mib and time.monotonic() < until:
        time.sleep(0.5)
    assert stored_mib() == pytest.approx(weights_mib, rel=0.05), "one version, not two"
    assert pids[0] == pids[1]
    assert versions == [version_of(large_run.store, SECOND)] * 2
    for name in (FIRST, SECOND):
        alone = Evaluator(
            large_run.space,
            large_run.shape,
            load_checkpoint(large_run.store, name, optimizer=False).weights,
            large_run.scoring_batches(),
            version="alone",
        )
        rows = alone.rows([Architecture.parse(text) for text in children])
        assert scored[name] == losses(rows)
    assert scored[FIRST] != scored[SECOND]
    for each in pool:
        ray.kill(each)


def test_mapping_weights_takes_next_to_no_private_memory(large_run: Run, supernet: Any) -> None:
    (evaluator,) = evaluators(large_run, 1)
    ray.get(evaluator.ready.remote())

    def drop_and_map(host: Any, name: str) -> tuple[float, float, float]:
        import ctypes
        import gc

        import psutil

        def uss() -> float:
            gc.collect()
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            return float(psutil.Process(os.getpid()).memory_full_info().uss / 2**20)

        host._scorer = None
        before = uss()
        host._scorer = host._inherited(name)
        size = sum(tensor.numel() * 4 for tensor in host._scorer.model.state_dict().values())
        return before, uss(), size / 2**20

    before, after, size = ray.get(evaluator.__ray_call__.remote(drop_and_map, FIRST))
    print(f"{size:.0f} MiB of weights, private memory {before:.0f} MiB, then {after:.0f} MiB")
    assert size > 150
    assert after - before < 0.05 * size
    ray.kill(evaluator)
