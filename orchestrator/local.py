"""The in-process twin of `orchestrator.on_ray`: plain PyTorch and for-loops, one process.

For `--local` and for fast tests; the product is Ray and DeepSpeed.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from evaluators.evaluator import Evaluator
from evaluators.own_scorer import OwnScore
from orchestrator.candidates import CandidateStream
from orchestrator.finetuning.short import with_finetuning
from orchestrator.runs import Run
from orchestrator.scoring import own_scorer
from orchestrator.training import ModelPlan, retrain_model, train_supernet
from supernet.checkpoint import load_checkpoint, version_of
from supernet.engine import PlainEngine

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

CPU = torch.device("cpu")
LOCAL_BATCH = 16
"""Children per batch where the configuration leaves it open."""


def train_locally(run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None:
    """Train the run's super-net."""
    sampler = run.sampler()
    train_supernet(run, make_engine=PlainEngine, plan=sampler.plan, report=on_progress, device=CPU)


def search_locally(
    run: Run,
    stream: CandidateStream,
    *,
    checkpoint: str,
    own: OwnScore | None,
    examples: "TaskData | None",
    on_progress: Callable[[CandidateStream], None],
) -> float:
    """Score the stream's candidates; returns the peak memory of hidden states in MiB."""
    scorer = own_scorer(run, own) or with_finetuning(run, _evaluator(run, checkpoint), examples)
    writer = run.store.row_writer("score")
    while (batch := stream.next_batch(run.config.search.batch_size or LOCAL_BATCH)) is not None:
        rows = scorer.rows(batch.architectures)
        for row in rows:
            row["batch_id"] = batch.batch_id
        writer.write(rows)
        stream.tell(batch.batch_id, rows)
        on_progress(stream)
    return scorer.peak_activation_mib


def _evaluator(run: Run, checkpoint: str) -> Evaluator:
    return Evaluator(
        run.space,
        run.shape,
        load_checkpoint(run.store, checkpoint, optimizer=False).weights,
        run.scoring_batches(),
        version=version_of(run.store, checkpoint),
        costs=run.cost_model,
    )


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
