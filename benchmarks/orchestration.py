"""What the search itself costs: candidates per second with a scorer that does nothing.

    python -m benchmarks.orchestration [--quick]

Our search at 2,000 and 20,000 candidates and bare Ray Tune with one trial per candidate at 2,000
take turns on one cluster of this machine, each in a driver process of its own; the time runs from
the first candidate asked to the last one told, so that neither's start-up counts. Both use the
random searcher. Then 256 simulated evaluators, many to a process, that take 1 s for each child.

`growth` is our time per candidate at 20,000 over that at 2,000, `driver_gib` the driver's peak
memory at 20,000, `bytes_per_candidate` the most that the run's folder held at 20,000, over the
candidates, and `simulated_fraction` the candidates per second after the first batch over 256.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.record import write_record
from benchmarks.workload import quickstart_space
from orchestrator.config import Config, parse
from supernet.space import Architecture

SEED = 0
SPACE = {"layers": 8}
"""The quickstart's space, 5**8 children."""
OBJECTIVE = "value"
SIMULATED = 256
PROCESSES = 4
"""That the simulated evaluators share."""


class Stopwatch:
    """Told every candidate, and when; a searcher around our random one."""

    def __init__(self, candidates: int) -> None:
        from orchestrator.searchers import RandomSearcher

        self._inner = RandomSearcher(_config(candidates).space.build(), seed=SEED)
        self.times: list[float] = []
        self.first = 0.0

    def ask(self) -> Architecture:
        """The next candidate."""
        self.first = self.first or time.perf_counter()
        return self._inner.ask()

    def tell(self, architecture: Architecture, metrics: Any) -> None:
        """Note when a score came."""
        if metrics is not None:
            self.times.append(time.perf_counter() - self.first)


def _config(candidates: int) -> Config:
    search = {"candidates": candidates, "objectives": {OBJECTIVE: "min"}}
    return parse({"space": SPACE, "search": search, "seed": SEED})


def ours(address: str, candidates: int) -> dict[str, float]:
    """Our search with a scorer that does nothing."""
    from orchestrator import search

    def nothing(architecture: Architecture) -> dict[str, float]:
        return {OBJECTIVE: 0.0}

    watch = Stopwatch(candidates)
    with tempfile.TemporaryDirectory() as folder, FolderSize(Path(folder)) as size:
        config = _config(candidates)
        search(Path(folder) / "run", config=config, searcher=watch, scorer=nothing, address=address)
    assert len(watch.times) == candidates
    return {
        "per_s": candidates / watch.times[-1],
        "driver_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "bytes_per_candidate": size.peak / candidates,
    }


def bare_tune(address: str, candidates: int) -> dict[str, float]:
    """Ray Tune with one trial per candidate, its loggers off, actors reused."""
    import ray
    from ray import tune
    from ray.tune.search import Searcher

    from orchestrator.on_ray.cluster import DRIVER_ENV, connect

    os.environ.update(DRIVER_ENV)
    layers = quickstart_space(64).layers

    class Random(Searcher):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(metric=OBJECTIVE, mode="min")
            self.rng, self.asked, self.told, self.first = random.Random(SEED), 0, 0, 0.0

        def suggest(self, trial_id: str) -> Any:
            self.first = self.first or time.perf_counter()
            if self.asked == candidates:
                return Searcher.FINISHED
            self.asked += 1
            return {
                f"layer_{number:02d}": self.rng.choice(names) for number, names in enumerate(layers)
            }

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.told += 1
            self.last = time.perf_counter()

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    class Trial(tune.Trainable):  # type: ignore[misc]
        def step(self) -> dict[str, Any]:
            return {OBJECTIVE: 0.0, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            pass

        def load_checkpoint(self, checkpoint: Any) -> None:
            pass

    searcher = Random()
    with connect(address, user_code=None), tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(Trial, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=-1, reuse_actors=True, max_concurrent_trials=2
            ),
            run_config=tune.RunConfig(name="bare", storage_path=folder, verbose=0),
        ).fit()
        assert ray.is_initialized()
    assert searcher.told == candidates
    return {"per_s": candidates / (searcher.last - searcher.first)}


def simulated(address: str, candidates: int) -> dict[str, float]:
    """Our search over evaluators that sleep for a second per child, many to a process."""
    import ray

    from orchestrator.candidates import CandidateStream
    from orchestrator.limits import Limits
    from orchestrator.objectives import Objectives
    from orchestrator.on_ray.cluster import connect
    from orchestrator.on_ray.search import search_with, start_dispatcher
    from orchestrator.runs import CONFIG, Run
    from orchestrator.store import RunStore

    class Sleeping:
        async def score_together(self, architectures: Sequence[str]) -> list[dict[str, Any]]:
            await asyncio.sleep(len(architectures))
            return [
                {
                    "architecture": text,
                    OBJECTIVE: 0.0,
                    "wall_s": 1.0,
                    "supernet_version": "simulated",
                    "error": None,
                }
                for text in architectures
            ]

        async def ready(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    watch = Stopwatch(candidates)
    with connect(address, user_code=None), tempfile.TemporaryDirectory() as folder:
        config, store = _config(candidates), RunStore(Path(folder) / "run")
        store.write_bytes(CONFIG, config.to_yaml().encode())
        run = Run(store, config)
        actor, names = ray.remote(Sleeping), [f"sleeping-{n}" for n in range(PROCESSES)]
        actors = [
            actor.options(name=name, num_cpus=0, max_concurrency=SIMULATED).remote()
            for name in names
        ]
        ray.get([each.ready.remote() for each in actors])
        stream = CandidateStream(
            store,
            run.space,
            None,
            Limits(),
            watch,
            total=candidates,
            supernet_version="simulated",
            objectives=Objectives.of(config.search.objectives),
        )
        pool = [names[number % PROCESSES] for number in range(SIMULATED)]
        dispatcher = start_dispatcher(run, pool, stream.supernet_version)
        search_with(run, stream, dispatcher, evaluators=SIMULATED, on_progress=lambda _: None)
    after_first = [told for told in watch.times if told > watch.times[0] + 0.1]
    return {"per_s": len(after_first) / (watch.times[-1] - watch.times[0])}


class FolderSize:
    """The most that a folder held, looked at twice a second."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop, self.peak = folder, threading.Event(), 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "FolderSize":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak = max(self.peak, _size(self._folder))


def _size(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.path.getsize(os.path.join(root, name))
            except OSError:  # gone meanwhile
                continue
    return total


TASKS = {"ours": ours, "tune": bare_tune, "simulated": simulated}


def _alone(task: str, address: str, candidates: int) -> dict[str, float]:
    """In a driver process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, float] = pool.apply(TASKS[task], (address, candidates))
    print(f"{task:<10} {candidates:>7,} candidates  {found['per_s']:10.1f} /s", flush=True)
    return found


def run(*, quick: bool) -> dict[str, Any]:
    """Take turns on one cluster."""
    import ray

    small, large, turns, long = (200, 2000, 1, 1024) if quick else (2000, 20_000, 3, 7680)
    context = ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="bench"
    )
    address = context.address_info["address"]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "large": [], "tune": []}
    try:
        for _ in range(turns):
            found["ours"].append(_alone("ours", address, small))
            found["tune"].append(_alone("tune", address, small))
            found["large"].append(_alone("ours", address, large))
        sleeping = _alone("simulated", address, long)
    finally:
        ray.shutdown()
    ratios = [a["per_s"] / b["per_s"] for a, b in zip(found["ours"], found["tune"], strict=True)]
    growths = [a["per_s"] / b["per_s"] for a, b in zip(found["ours"], found["large"], strict=True)]
    return {
        "ours_per_s": statistics.median(each["per_s"] for each in found["ours"]),
        "tune_per_s": statistics.median(each["per_s"] for each in found["tune"]),
        "ratio": statistics.median(ratios),
        "growth": statistics.median(growths),
        "driver_gib": max(each["driver_gib"] for each in found["large"]),
        "bytes_per_candidate": max(each["bytes_per_candidate"] for each in found["large"]),
        "simulated_fraction": sleeping["per_s"] / SIMULATED,
        "candidates": [small, large, long],
        "turns": found,
        "quick": quick,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the candidates, one turn")
    results = run(quick=parser.parse_args().quick)
    if not results["quick"]:
        write_record("orchestration", results, seeds={"searcher": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
