"""Is what a path trains all that moves, and is it what PyTorch alone would come to?

    python -m benchmarks.path_exact [--quick]

Two workers train on the paths of MAGIC-T at every ZeRO stage, against plain PyTorch's AdamW on the
joined batch. The control is plain PyTorch on the batch in two halves, whose gradients add up: it
differs by the order of summation alone. "stock" is DeepSpeed with PyTorch's own AdamW.
"""

import argparse
import json
import os
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.path_watch import PathWatch
from benchmarks.record import write_record
from benchmarks.stock_deepspeed import StockDeepSpeed, plain_adamw
from benchmarks.workload import Text, prepare_text, quickstart_space, supernet
from orchestrator.store import RunStore
from supernet.deepspeed_engine import DeepSpeedEngine
from supernet.engine import Engine
from supernet.loss import masked_lm_loss
from supernet.model import SuperNet
from supernet.sampler import MagicTSampler
from supernet.settings import OptimiserSettings
from supernet.training import News, TrainingJob, learning_rate, train

STAGES, WORKERS, SEED = (0, 1, 2, 3), 2, 0
_NAME = "path_exact"

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """What all runs share."""

    text: Text
    recipe: OptimiserSettings
    hidden_size: int

    def model(self) -> SuperNet:
        """The super-net, with the same weights in every run."""
        space = quickstart_space(self.hidden_size)
        return supernet(space, self.text, hidden_size=self.hidden_size, seed=SEED)

    def job(self, folder: Path) -> TrainingJob:
        """The training of a run; checkpoints go to a folder."""
        return TrainingJob(
            settings=self.recipe,
            plan=MagicTSampler(quickstart_space(self.hidden_size), seed=SEED).plan,
            batches=self.text.batches(batch_size=self.recipe.batch_size, seed=SEED),
            files=RunStore(folder),
            folder="supernet",
            seed=SEED,
        )


class _Silent:
    def on_begin(self, step: int) -> None:
        """Nobody listens."""

    def on_interval(self, row: dict[str, Any]) -> None:
        """Nobody listens."""

    def on_checkpoint(self, news: News) -> None:
        """Nobody listens."""


def train_plainly(case: Case, *, parts: int) -> Weights:
    """Plain PyTorch on the batch in so many parts, whose gradients add up."""
    model, recipe = case.model().train(), case.recipe
    job = case.job(Path(os.devnull))
    optimizer = plain_adamw(model, recipe)
    for step, (path,) in enumerate(job.plan(0, recipe.steps)):
        batches = [job.batches.at(step, part=part, parts=parts) for part in range(parts)]
        targets = sum(batch.num_targets for batch in batches)
        optimizer.zero_grad()
        for batch in batches:
            loss_sum, _ = masked_lm_loss(model, path, batch)
            (loss_sum / targets).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
    return model.state_dict()


def _worker(rank: int, case: Case, kind: str, stage: int, folder: Path) -> None:
    """One of the workers: trains, watched, and writes what it came to or why it failed."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS
    )
    found: dict[str, Any]
    try:
        found = _train_watched(case, kind, stage, folder)
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {error}"}
    torch.save(found, folder / f"{rank}.pt")
    os._exit(0)  # where a collective hangs, the other worker is ended by the parent


def _train_watched(case: Case, kind: str, stage: int, folder: Path) -> dict[str, Any]:
    make: Any = DeepSpeedEngine if kind == "ours" else StockDeepSpeed
    micro_batch = case.recipe.batch_size // WORKERS
    engine: Engine = make(case.model(), case.recipe, zero_stage=stage, micro_batch=micro_batch)
    watch = PathWatch(engine)
    train(watch, case.job(folder / "run"), _Silent(), resume_from=None)
    return {"weights": engine.weights(), "off": watch.off_path_moved, "on": watch.on_path_moved}


def measure(case: Case, kind: str, stage: int, wanted: Weights, control: float) -> dict[str, Any]:
    """Train with one kind of engine at one stage and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mp.spawn(_worker, args=(case, kind, stage, folder), nprocs=WORKERS)  # type: ignore[attr-defined,no-untyped-call]
        found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORKERS)]
    failed = [one["failed"] for one in found if "failed" in one]
    if failed:
        return {"failed": failed[0]}
    difference = max(largest_difference(wanted, one["weights"]) for one in found)
    return {
        "max_abs_diff": difference,
        "control_diff": control,
        "diff_over_control": difference / control,
        "off_path_moved": sum(one["off"] for one in found),
        "on_path_moved": sum(one["on"] for one in found),
    }


def largest_difference(one: Weights, other: Weights) -> float:
    """The largest absolute difference of any weight."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name].view_as(one[name])).abs().max()) for name in one)


def run(*, quick: bool) -> dict[str, Any]:
    """Measure every stage, ours and stock."""
    torch.set_num_threads(1)
    hidden_size, steps, batch_size = (16, 12, 8) if quick else (64, 50, 32)
    recipe = OptimiserSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        warmup_steps=steps // 5,
        weight_decay=0.1,
        clip_norm=0.5,
        checkpoint_steps=10**6,
    )
    with tempfile.TemporaryDirectory() as name:
        text = prepare_text(Path(name) / "data", vocab_size=1024, length=32 if quick else 64)
        case = Case(text, recipe, hidden_size)
        wanted = train_plainly(case, parts=1)
        control = largest_difference(wanted, train_plainly(case, parts=WORKERS))
        results: dict[str, Any] = {str(stage): {} for stage in STAGES}
        stock: dict[str, Any] = {}
        for stage in STAGES:
            results[str(stage)] = measure(case, "ours", stage, wanted, control)
            stock[str(stage)] = measure(case, "stock", stage, wanted, control)
        num_params = sum(p.numel() for p in case.model().parameters())
    return {
        **results,
        "stock": stock,
        "text": text.source,
        "workers": WORKERS,
        "num_params": num_params,
        "quick": quick,
        "recipe": recipe.model_dump(),
    }


def _print_table(results: dict[str, Any]) -> None:
    print(f"{'':8}{'stage':>6}{'max diff':>12}{'/ control':>11}{'off path moved':>16}")
    for kind, rows in (("ours", results), ("stock", results["stock"])):
        for stage in map(str, STAGES):
            row = rows[stage]
            if "max_abs_diff" not in row:
                print(f"{kind:8}{stage:>6}  {row['failed']}"[:120])
                continue
            print(
                f"{kind:8}{stage:>6}{row['max_abs_diff']:12.2e}{row['diff_over_control']:11.2f}"
                f"{row['off_path_moved']:16,}"
            )


def main() -> None:
    """Run, print a table and, last, one line of JSON; a full run also writes a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer steps, a smaller network")
    quick = parser.parse_args().quick
    results = run(quick=quick)
    _print_table(results)
    if not quick:
        write_record(_NAME, results, seeds={"weights": SEED, "paths": SEED, "batches": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
