"""The in-process twin of `orchestrator.on_ray`: plain PyTorch and for-loops, one process.

For `--local` and for fast tests; the product is Ray and DeepSpeed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from evaluators.evaluator import Evaluator
from orchestrator.candidates import CandidateStream
from orchestrator.runs import Run
from orchestrator.training import ModelPlan, retrain_model, train_supernet
from supernet.checkpoint import load_checkpoint, version_of
from supernet.engine import PlainEngine

CPU = torch.device("cpu")


def train_locally(run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Train the run's super-net."""
    sampler = run.sampler()
    train_supernet(run, make_engine=PlainEngine, plan=sampler.plan, report=on_progress, device=CPU)


def search_locally(
    run: Run,
    stream: CandidateStream,
    *,
    checkpoint: str,
    on_progress: Callable[[CandidateStream], None],
) -> None:
    """Score the stream's candidates one after the other."""
    evaluator = Evaluator(
        run.space,
        run.shape,
        load_checkpoint(run.store, checkpoint, optimizer=False).weights,
        run.eval_batches("valid", sequences=run.config.search.valid_sequences),
        version=version_of(run.store, checkpoint),
    )
    writer = run.store.row_writer("score")
    while (batch := stream.next_batch(run.config.search.batch_size)) is not None:
        rows = [
            {**evaluator.score(architecture).to_row(), "batch_id": batch.batch_id}
            for architecture in batch.architectures
        ]
        writer.write(rows)
        stream.tell(batch.batch_id, rows)
        on_progress(stream)


def retrain_locally(
    run: Run,
    models: Sequence[ModelPlan],
    on_progress: Callable[[str, dict[str, Any]], None],
) -> None:
    """Train each model stand-alone, one after the other."""
    for model in models:
        retrain_model(
            run,
            model,
            make_engine=PlainEngine,
            report=lambda row, name=model.name: on_progress(name, row),  # type: ignore[misc]
            device=CPU,
        )
