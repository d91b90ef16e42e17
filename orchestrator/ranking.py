"""`magic-nas rank`: does the super-net rank children as stand-alone training does?

Draws children, trains each stand-alone from several seeds, scores it with inherited weights on the
same valid sequences, and compares. Writes `ranking.parquet`, `ranking.json` and the report. Results
of stand-alone training are rows, by architecture, recipe and seed, and are never computed twice.
"""

import hashlib
import io
import json
import logging
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from evaluators.evaluator import Evaluator
from evaluators.score import Score
from orchestrator.lease import hold_lease
from orchestrator.limits import Limits, sample_within
from orchestrator.log_lines import lines_of
from orchestrator.progress import Progress
from orchestrator.ranking_summary import TRUTH, summarise
from orchestrator.report import write_report
from orchestrator.runinfo import is_finished
from orchestrator.runs import Run
from orchestrator.stages import find_checkpoint, train_alone
from orchestrator.training import ModelPlan
from orchestrator.validation import check_before_start
from orchestrator.workers import workers
from supernet.checkpoint import load_checkpoint, version_of
from supernet.errors import InvalidInput
from supernet.settings import OptimiserSettings
from supernet.space import Architecture

FRAME, SUMMARY = "ranking.parquet", "ranking.json"
RESULTS = "standalone"
"""Folder of what is being trained, and kind of the rows of what was."""
_NOT_THE_RECIPE = {"checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"}

logger = logging.getLogger(__name__)

Child = tuple[Architecture, list[ModelPlan]]


def rank(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    checkpoint: str | None = None,
    address: str | None = None,
    local: bool = False,
) -> dict[str, Any]:
    """Compare a run's super-net with stand-alone training; returns what `ranking.json` holds.

    Args:
        folder: the run's.
        overrides: such as "rank.children=60"; they hold for this call and are not kept.
        checkpoint: of the super-net, such as "step-00000400"; none: the newest.
        address: of a running Ray cluster; none: a local one for the length of the call.
        local: one process without Ray, for small tries.

    Raises:
        InvalidInput: if there is no such run or checkpoint, the super-net is not trained, a setting
            is out of range, or the space has fewer children; nothing is written then.
        StorageFailed: if the run's storage refuses a write.
    """
    run = Run.open_to_measure(folder, "rank", overrides)
    check_before_start(run.config, local=local, address=address)
    if not is_finished(run.store, "train"):
        raise InvalidInput(
            f"a ranking needs a trained super-net, but that of {run.store.uri} is not: run "
            f"'magic-nas train --out {run.store.uri}' first"
        )
    checkpoint = find_checkpoint(run, checkpoint)
    children = [(child, _plans(run, child)) for child in sample_children(run)]
    with hold_lease(run.store), lines_of(run.store.name, "rank"):
        scores = _inherited(run, checkpoint, [child for child, _ in children])
        _train(run, [plan for _, plans in children for plan in plans], address, local)
        return _write(run, checkpoint, _frame(run, children, scores))


def sample_children(run: Run) -> list[Architecture]:
    """Different children, uniform over those within limits; fewer of them are the first of more.

    Raises:
        InvalidInput: if there are fewer than `rank.children`.
    """
    settings = run.config.rank
    rng = random.Random(f"rank:{run.config.seed}")
    limits = run.limits if settings.within_limits else Limits()
    children: dict[Architecture, None] = {}
    while len(children) < settings.children:
        child = sample_within(run.space, run.cost_model, limits, rng, exclude=children)
        if child is None:
            within = f" within the limits ({limits})" if limits.bounds else ""
            raise InvalidInput(
                f"rank.children must be at most the architectures of the space{within}, of which "
                f"{len(children)} were found, but got {settings.children}: lower it"
                + (", or set rank.within_limits=false" if limits.bounds else "")
            )
        children[child] = None
    return list(children)


def _plans(run: Run, child: Architecture) -> list[ModelPlan]:
    """A child's trainings; the seeds follow the super-net's own, which would share its batches."""
    recipe = _recipe(run)
    first = run.config.seed + 1
    content = json.dumps([str(child), recipe.model_dump(exclude=_NOT_THE_RECIPE)])
    key = hashlib.sha256(content.encode()).hexdigest()[:12]
    names = {seed: f"{key}-{seed}" for seed in range(first, first + run.config.rank.seeds)}
    return [
        ModelPlan(name, child, f"{RESULTS}/{name}", recipe, seed, result_only=True)
        for seed, name in names.items()
    ]


def _recipe(run: Run) -> OptimiserSettings:
    values = {name: getattr(run.config.retrain, name) for name in OptimiserSettings.model_fields}
    return OptimiserSettings(**{**values, "steps": run.config.rank.steps or values["steps"]})


def _inherited(run: Run, checkpoint: str, children: Sequence[Architecture]) -> list[Score]:
    evaluator = Evaluator(
        run.space,
        run.shape,
        load_checkpoint(run.store, checkpoint, optimizer=False).weights,
        run.scoring_batches(),
        version=version_of(run.store, checkpoint),
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    scores = []
    with Progress(run.store.name, "score", total=len(children), unit="child") as progress:
        for child in children:
            scores.append(evaluator.score(child))
            progress.at(len(scores))
    return scores


def _train(run: Run, plans: Sequence[ModelPlan], address: str | None, local: bool) -> None:
    """Train what has no row yet, then make rows of it."""
    done = _collect(run)
    todo = [plan for plan in plans if plan.name not in done]
    if len(todo) < len(plans):
        logger.info("%d of %d trainings done before", len(plans) - len(todo), len(plans))
    stages = ("retrain",) if todo else ()
    with workers(run, address=address, local=local, todo=stages) as on:
        if todo:
            train_alone(run, on, todo, stage="rank")
    _collect(run)


def _collect(run: Run) -> dict[str, dict[str, Any]]:
    """All results by name; those that lie in folders become rows, and their folders go."""
    done = {row["name"]: row for row in run.store.rows(RESULTS)}
    finished = [
        name
        for name in run.store.names(RESULTS)
        if run.store.exists(f"{RESULTS}/{name}/result.json")
    ]
    fresh = {
        name: run.store.read_json(f"{RESULTS}/{name}/result.json")
        for name in finished
        if name not in done
    }
    run.store.row_writer(RESULTS).write(fresh.values())
    for name in finished:
        run.store.delete(f"{RESULTS}/{name}")
    if not run.store.names(RESULTS):
        run.store.delete(RESULTS)
    return done | fresh


def _frame(run: Run, children: Sequence[Child], scores: Sequence[Score]) -> pd.DataFrame:
    """A line per child; losses are NaN and `error` says why where a child failed."""
    done = _collect(run)
    lines = [
        _line(score, {plan.seed: done[plan.name] for plan in plans})
        for (_, plans), score in zip(children, scores, strict=True)
    ]
    return pd.DataFrame(lines)


def _line(score: Score, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    losses = {
        f"{TRUTH}_{seed}": float(result.get("val_loss_nats", np.nan))
        for seed, result in results.items()
    }
    errors = [score.error, *(result.get("error") for result in results.values())]
    return {
        "architecture": score.architecture,
        "inherited_loss_nats": np.nan if score.val_loss_nats is None else score.val_loss_nats,
        TRUTH: float(np.mean(list(losses.values()))),
        **losses,
        "num_params": score.num_params,
        "flops": score.flops,
        "error": next((error for error in errors if error), None),
    }


def _write(run: Run, checkpoint: str, frame: pd.DataFrame) -> dict[str, Any]:
    for line in frame[frame["error"].notna()].to_dict("records"):
        logger.warning("%s is left out: %s", line["architecture"], line["error"])
    settings = run.config.rank
    summary = {
        "checkpoint": checkpoint.rpartition("/")[2],
        "supernet_version": version_of(run.store, checkpoint),
        "limits": str(run.limits) if settings.within_limits else "",
        "recipe": _recipe(run).model_dump(mode="json"),
        **summarise(frame, run.space, replicates=settings.replicates, seed=run.config.seed),
    }
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    run.store.write_bytes(FRAME, buffer.getvalue())
    run.store.write_json(SUMMARY, summary)
    write_report(run.store)
    return summary
