"""What a training step costs, over a bare PyTorch loop on the same paths, batches and threads.

    python -m benchmarks.training [--quick]

Our worker's loop with DeepSpeed and a bare loop take turns, a block of steps each, so that both
see the same machine; a ratio is the median over the pairs of blocks. The bare loop has all
parameters in PyTorch's fused AdamW; with several workers it reduces the path's gradients in one
flat buffer. `cpu_ratio` compares processor time, which others on the machine disturb less.
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.record import write_record
from benchmarks.stock_deepspeed import plain_adamw
from benchmarks.workload import (
    Text,
    operators_624_space,
    prepare_text,
    quickstart_space,
    supernet,
)
from orchestrator.store import RunStore
from supernet.alignment import Anchors
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.loss import masked_lm_loss
from supernet.model import SuperNet
from supernet.sampler import build_sampler
from supernet.settings import AlignSettings, OptimiserSettings
from supernet.space import SearchSpace
from supernet.training import Loop, News, TrainingJob, train

SEED = 0
_NAME = "training"
_WARM_UP = 1
"""Pairs of blocks at the start that do not count."""
SPACES: Mapping[str, tuple[Callable[[int], SearchSpace], int]] = {
    "quickstart": (quickstart_space, 128),
    "operators_624": (operators_624_space, 64),
}
"""Name to the space and its width."""


@dataclass(frozen=True)
class Case:
    """What is measured; `magic_t` at stage 0 with one worker is what `ratio` reports."""

    space: str
    sampler: str = "magic_t"
    stage: int = 0
    workers: int = 1
    align: bool = False
    """MAGIC-A, its anchors compared once a block; measured against our own loop without it."""


CASES = [
    Case(space, **changes)
    for space in SPACES
    for changes in (
        {},
        {"sampler": "uniform"},
        {"stage": 1},
        {"workers": 2},
        {"stage": 1, "workers": 2},
    )
]
ALIGNED = [Case("quickstart", sampler, align=True) for sampler in ("uniform", "magic_t")]
ALIGN = AlignSettings(start=0.0)


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    rounds: int
    steps: int
    """Of a block."""
    batch_size: int = 32


class BareLoop:
    """PyTorch alone."""

    def __init__(self, model: SuperNet, job: TrainingJob) -> None:
        self._model, self._job = model.train(), job
        self._optimizer = plain_adamw(model, job.settings)
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._paths = [path for (path,) in job.plan(0, job.settings.steps)]

    def step(self, step: int) -> None:
        """One step on the step's path and this worker's part of its batch."""
        batch = self._job.batches.at(step, part=self._rank, parts=self._world)
        self._optimizer.zero_grad()
        loss_sum, count = masked_lm_loss(self._model, self._paths[step], batch)
        (loss_sum / (count * self._world)).backward()  # type: ignore[no-untyped-call]
        if self._world > 1:
            self._reduce()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._job.settings.clip_norm)
        self._optimizer.step()

    def _reduce(self) -> None:
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        parts = torch.split(flat, sizes)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class WithoutAnchor:
    """Our own loop without MAGIC-A."""

    def __init__(self, engine: DeepSpeedEngine, job: TrainingJob) -> None:
        self._loop = Loop(engine, replace(job, anchors=None), _Silent())
        self._paths = job.plan(0, job.settings.steps)

    def step(self, step: int) -> None:
        """One step on the step's paths."""
        self._loop.step(step, self._paths[step])


_Spent = tuple[float, float]
"""Seconds by the clock and of processor time."""


def _now() -> _Spent:
    return time.perf_counter(), time.process_time()


def _since(began: _Spent) -> _Spent:
    clock, processor = _now()
    return clock - began[0], processor - began[1]


class TakingTurns(DeepSpeedEngine):
    """Our engine, which after each block of steps lets the bare loop take the same steps."""

    def take_turns_with(self, bare: BareLoop | WithoutAnchor, *, block: int) -> None:
        """Begin with a block of our own."""
        self._bare, self._block, self._steps = bare, block, 0
        self.seconds: list[tuple[_Spent, _Spent]] = []
        """Of our blocks and the bare loop's."""
        self._began = _now()

    def update(self, learning_rate: float) -> None:
        """Take the step; at a block's end, let the bare loop catch up."""
        super().update(learning_rate)
        self._steps += 1
        if self._steps % self._block:
            return
        ours, began = _since(self._began), _now()
        for step in range(self._steps - self._block, self._steps):
            self._bare.step(step)
        self.seconds.append((ours, _since(began)))
        self._began = _now()


class _Silent:
    def on_begin(self, step: int) -> None:
        """Nobody listens."""

    def on_interval(self, row: dict[str, Any]) -> None:
        """Nobody listens."""

    def on_checkpoint(self, news: News) -> None:
        """Nobody listens."""


def _job(case: Case, text: Text, amount: Amount, folder: Path) -> TrainingJob:
    make_space, width = SPACES[case.space]
    steps = amount.steps * (amount.rounds + _WARM_UP)
    space = make_space(width)
    sampler = build_sampler({"name": case.sampler}, space, seed=SEED)
    return TrainingJob(
        settings=OptimiserSettings(
            steps=steps,
            batch_size=amount.batch_size,
            checkpoint_steps=10**6,
            checkpoint_minutes=1e6,
            keep_checkpoints=2,
        ),
        plan=sampler.plan,
        batches=text.batches(batch_size=amount.batch_size, seed=SEED),
        files=RunStore(folder / "run"),
        folder="supernet",
        seed=SEED,
        anchors=_anchors(space, text, steps) if case.align else None,
    )


def _anchors(space: SearchSpace, text: Text, steps: int) -> Anchors:
    """Compared on training text, for the benchmark's has no other split."""
    batches = text.batches(batch_size=ALIGN.sequences, seed=SEED + 1)
    return Anchors(ALIGN, space, [batches.at(n) for n in range(8)], steps=steps, seed=SEED)


def _worker(rank: int, case: Case, text: Text, amount: Amount, folder: Path, alone: bool) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=case.workers
    )
    make_space, width = SPACES[case.space]
    job = _job(case, text, amount, folder)

    def model() -> SuperNet:
        return supernet(make_space(width), text, hidden_size=width, seed=SEED)

    kind = DeepSpeedEngine if alone else TakingTurns
    micro_batch = amount.batch_size // case.workers
    engine = kind(model(), job.settings, zero_stage=case.stage, micro_batch=micro_batch)
    if isinstance(engine, TakingTurns):
        other: BareLoop | WithoutAnchor = BareLoop(model(), job)
        if case.align:
            settings = {"zero_stage": case.stage, "micro_batch": micro_batch}
            other = WithoutAnchor(DeepSpeedEngine(model(), job.settings, **settings), job)
        engine.take_turns_with(other, block=amount.steps)
    train(engine, job, _Silent(), resume_from=None)
    if rank == 0:
        seconds = engine.seconds if isinstance(engine, TakingTurns) else []
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"seconds": seconds, "peak_memory_gib": peak_kib / 2**20}
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _run(case: Case, text: Text, amount: Amount, *, alone: bool = False) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(_worker, args=(case, text, amount, folder, alone), nprocs=case.workers)  # type: ignore[attr-defined,no-untyped-call]
        found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def measure(case: Case, text: Text, amount: Amount) -> dict[str, Any]:
    """The ratio of a case, its spread over the blocks, and times of a step."""
    pairs: Sequence[tuple[_Spent, _Spent]] = _run(case, text, amount)["seconds"][_WARM_UP:]
    ratios, cpu_ratios = ([ours[i] / bare[i] for ours, bare in pairs] for i in (0, 1))
    low, _, high = statistics.quantiles(ratios, n=4)
    ours_s, bare_s = (
        statistics.median(pair[who][0] for pair in pairs) / amount.steps for who in (0, 1)
    )
    return {
        **asdict(case),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [low, high],
        "cpu_ratio": statistics.median(cpu_ratios),
        "step_ms": 1e3 * ours_s,
        "bare_step_ms": 1e3 * bare_s,
        "tokens_per_s": amount.batch_size * text.summary.sequence_length / ours_s,
        "blocks": len(pairs),
    }


def run(*, quick: bool) -> dict[str, Any]:
    """Measure every case; quick: those with one worker at stage 0, on less."""
    amounts = {
        "quickstart": Amount(rounds=4, steps=3) if quick else Amount(rounds=12, steps=6),
        "operators_624": Amount(rounds=3, steps=2) if quick else Amount(rounds=12, steps=4),
    }
    cases = [Case(space) for space in SPACES] if quick else CASES
    aligned = Amount(rounds=2 if quick else 8, steps=ALIGN.interval)
    memory = Amount(rounds=2, steps=2)
    with tempfile.TemporaryDirectory() as name:
        text = prepare_text(Path(name) / "data", vocab_size=4096, length=64)
        details = []
        for case in [*cases, *(ALIGNED[:1] if quick else ALIGNED)]:
            details.append(measure(case, text, aligned if case.align else amounts[case.space]))
            print(_line(details[-1]), flush=True)
        peaks = {
            space: _run(Case(space), text, memory, alone=True)["peak_memory_gib"]
            for space in SPACES
        }
    main = {
        row["space"]: row for row in details if asdict(Case(row["space"])).items() <= row.items()
    }
    aligned_ratios = [row["ratio"] for row in details if row["align"]]
    return {
        "ratio": {space: main[space]["ratio"] for space in SPACES}
        | {"magic_a": max(aligned_ratios)},
        "tokens_per_s": {space: main[space]["tokens_per_s"] for space in SPACES},
        "peak_memory_gib": peaks,
        "details": details,
        "text": text.source,
        "quick": quick,
    }


def _line(row: Mapping[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    method = row["sampler"] + ("+a" if row["align"] else "")
    return (
        f"{row['space']:14} {method:10} stage {row['stage']} workers {row['workers']}  "
        f"{row['ratio']:5.2f}x ({low:.2f}-{high:.2f}) cpu {row['cpu_ratio']:.2f}x "
        f" {row['step_ms']:7.1f} ms "
        f"{row['tokens_per_s']:9,.0f} tokens/s"
    )


def main() -> None:
    """Run, print a line per case and, last, one line of JSON; a full run also writes a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one worker at stage 0, fewer steps")
    quick = parser.parse_args().quick
    results = run(quick=quick)
    if not quick:
        write_record(_NAME, results, seeds={"weights": SEED, "paths": SEED, "batches": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
