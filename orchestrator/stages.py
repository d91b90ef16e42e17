"""The stages of a run, each from the run's folder into the run's folder.

Where the work is done is behind `workers.py`.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from evaluators.own_scorer import OwnScore
from orchestrator.baseline import handmade_baseline, random_controls
from orchestrator.candidates import CandidateStream
from orchestrator.finetuning.short import check_same_examples
from orchestrator.latency import measure_latency, measure_winners
from orchestrator.leaderboard import (
    build_leaderboard,
    format_leaderboard,
    load_leaderboard,
    write_leaderboard,
)
from orchestrator.learnt import check_learnt, record_comparison
from orchestrator.node_copy import folder_to_fill
from orchestrator.objectives import Objectives
from orchestrator.progress import Progress
from orchestrator.runinfo import update_info
from orchestrator.runs import LATENCY, SUPERNET, Run
from orchestrator.scoring import OWN
from orchestrator.searchers import AskTell, as_ask_tell, build_searcher
from orchestrator.trackers import Trackers
from orchestrator.training import ModelPlan
from orchestrator.workers import Workers
from supernet.checkpoint import latest_checkpoint, load_checkpoint, version_of
from supernet.data.prepare import prepare
from supernet.data.summary import check_batch
from supernet.errors import InvalidInput, MagicNasError, RunConflict
from supernet.space import Architecture

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

LINES_BELOW = 12
"""Of the live leaderboard, below the search's bar."""

logger = logging.getLogger(__name__)


def prepare_data(run: Run) -> None:
    """Read, split, tokenise, pack; what an attempt that was killed has left is removed first."""
    run.store.delete("data")
    with (
        folder_to_fill(run.store, "data") as folder,
        Progress(run.store.name, "data", total=0, unit="doc") as progress,
    ):
        for left in folder.parent.glob(".data-*"):
            shutil.rmtree(left)
        prepare(
            run.config.data,
            folder,
            seed=run.config.seed,
            on_progress=lambda what, done, total: progress.at(done, note=what),
        )


def prepare_costs(run: Run) -> None:
    """Measure latency where the search needs it; check that some child meets the limits."""
    if run.needs_latency and not run.store.exists(LATENCY):
        logger.info("latency: measuring operators on %s", run.config.latency.device)
        measure_latency(run)
    for settings in (run.config.train, run.config.retrain):
        check_batch(run.summary, batch_size=settings.batch_size)
    run.limits.check_feasible(run.cost_model)


def scores_own(run: Run, own: OwnScore | None) -> bool:
    """Whether a user's function scores, in place of a super-net's weights."""
    return own is not None or run.config.search.scorer is not None


def train(run: Run, on: Workers) -> None:
    """Train the super-net."""
    done = latest_checkpoint(run.store, SUPERNET, optimizer=False)
    initial = done.step if done else 0
    total = run.config.train.steps
    with (
        Trackers(run) as trackers,
        Progress(run.store.name, "train", total=total, unit="step", initial=initial) as progress,
    ):

        def show(row: dict[str, Any]) -> None:
            _show_training(progress, row)
            if trackers.due():
                trackers.show("train", run.store.rows("train"))

        on.train(run, show)
        progress.at(total)
        trackers.show("train", run.store.rows("train"))
    check_learnt(run)


def _show_training(progress: Progress, row: dict[str, Any]) -> None:
    if row:
        progress.at(row["step"], note=f"loss {row['loss_nats']:.3f} nats")


def search(
    run: Run,
    on: Workers,
    *,
    searcher: AskTell | None,
    own: OwnScore | None,
    checkpoint: str | None,
    examples: "TaskData | None",
) -> None:
    """Score candidates with inherited weights or by `own`, then write the leaderboard.

    Args: examples: those of `search.finetune`, which children are fine-tuned on too.
    """
    settings, objectives = run.config.search, Objectives.of(run.config.search.objectives)
    by_own = scores_own(run, own)
    name = "" if by_own else checkpoint_to_search(run, checkpoint)
    if settings.limits and not run.has_data:
        raise InvalidInput(
            f"search.limits {settings.limits!r} needs the vocabulary to count with, but "
            f"{run.store.uri} has no data yet: run 'magic-nas run', or check in your scorer"
        )
    if examples is not None:
        check_same_examples(run, examples)
    stream = CandidateStream(
        run.store,
        run.space,
        run.cost_model if run.has_data else None,
        run.limits,
        _searcher(run) if searcher is None else as_ask_tell(searcher, run.space, objectives),
        total=settings.candidates,
        supernet_version=OWN if by_own else version_of(run.store, name),
        objectives=objectives,
        max_failed=settings.max_failed,
    )
    with (
        Trackers(run) as trackers,
        Progress(
            run.store.name,
            "search",
            total=settings.candidates,
            unit="child",
            initial=stream.done,
            below=LINES_BELOW,
        ) as progress,
    ):
        trackers.catch_up()
        show = partial(_show_search, progress, trackers)
        peak_mib = on.search(
            run, stream, checkpoint=name, own=own, examples=examples, on_progress=show
        )
        trackers.show("score", stream.rows)
    if stream.done < stream.total:
        raise MagicNasError(
            f"the search ended with {stream.done} of {stream.total} children scored; these "
            f"are kept: run the same command again"
        )
    update_info(run.store, search={"peak_activation_mib": round(peak_mib, 2)})
    write_leaderboard(run.store, objectives)
    if run.has_data and run.latency_table is not None:
        measure_winners(run, run.latency_table)


def _searcher(run: Run) -> AskTell:
    return build_searcher(
        run.config.search.searcher,
        run.space,
        seed=run.config.seed,
        objectives=Objectives.of(run.config.search.objectives),
    )


def _show_search(progress: Progress, trackers: Trackers, stream: CandidateStream) -> None:
    if trackers.due():
        trackers.show("score", stream.rows)
    name, best = stream.objectives.first, stream.best
    note = f"best {name} {best[name]:.4g}" if best else ""
    progress.at(stream.done, note, total=stream.total)
    progress.below(lambda: _live_leaderboard(stream))


def _live_leaderboard(stream: CandidateStream) -> str:
    board = build_leaderboard(stream.top(LINES_BELOW), stream.objectives)
    return format_leaderboard(board, width=shutil.get_terminal_size().columns - 1)


def checkpoint_to_search(run: Run, wanted: str | None) -> str:
    """As `find_checkpoint`, for a run that keeps the scores of one checkpoint.

    Raises:
        InvalidInput: if it is not there or damaged, or the run has scores of another one.
    """
    name = find_checkpoint(run, wanted)
    versions = {row["supernet_version"] for row in run.store.rows("score")}
    if versions - {version_of(run.store, name)}:
        raise RunConflict(
            f"a search scores with one version of the weights, but {run.store.uri} has rows of "
            f"{sorted(versions)[0]} and {name} is {version_of(run.store, name)}: search that "
            f"checkpoint in another run's folder"
        )
    return name


def find_checkpoint(run: Run, wanted: str | None) -> str:
    """The name of the wanted checkpoint of the super-net, or of the newest whole one.

    Raises:
        InvalidInput: if it is not there or damaged.
    """
    if wanted:
        there = run.store.names(SUPERNET)
        if wanted not in there:
            raise InvalidInput(
                f"--checkpoint must be one of {', '.join(there)}, but got {wanted!r}: name one of "
                f"them, or leave it out for the newest"
            )
        return load_checkpoint(run.store, f"{SUPERNET}/{wanted}", optimizer=False).name
    newest = latest_checkpoint(run.store, SUPERNET, optimizer=False)
    if newest is None:
        raise InvalidInput(
            f"{run.store.uri} has no whole checkpoint of its super-net: run 'magic-nas train', "
            f"with another --out if its training is finished already"
        )
    return newest.name


def retrain(run: Run, on: Workers) -> None:
    """Train the best child, the hand-made baseline and the controls stand-alone; compare."""
    models = _models_to_train(run)
    train_alone(run, on, models, stage="retrain")
    with Trackers(run) as trackers:
        trackers.catch_up()
    results = [run.store.read_json(f"{model.folder}/result.json") for model in models]
    record_comparison(run, results)


def train_alone(run: Run, on: Workers, models: Sequence[ModelPlan], *, stage: str) -> None:
    """Train each model that has no result yet, showing the steps of all of them."""
    todo = [m for m in models if not run.store.exists(f"{m.folder}/result.json")]
    steps = {m.name: 0 if m in todo else m.recipe.steps for m in models}
    total = sum(model.recipe.steps for model in models)
    with Progress(run.store.name, stage, total=total, unit="step") as progress:

        def show(name: str, row: dict[str, Any]) -> None:
            steps[name] = row["step"]
            progress.at(sum(steps.values()), note=f"{name} {row['loss_nats']:.3f} nats")

        if todo:
            on.retrain(run, todo, show)
        progress.at(total)


def _models_to_train(run: Run) -> list[ModelPlan]:
    frame = load_leaderboard(run.store.uri)
    if frame.empty:
        raise InvalidInput(f"no child was scored without an error in {run.store.uri}")
    best = Architecture.parse(str(frame["architecture"].iloc[0]))
    baseline = handmade_baseline(
        run.space, run.cost_model, num_params=run.cost_model.cost(best).num_params
    )
    controls = random_controls(
        run.space,
        run.cost_model,
        run.limits,
        count=run.config.retrain.controls,
        seed=run.config.seed,
        exclude=[best, baseline],
    )
    named = [("best", best), ("baseline", baseline)]
    named += [(f"control_{number}", control) for number, control in enumerate(controls)]
    recipe, seed = run.config.retrain, run.config.seed
    return [
        ModelPlan(name, architecture, f"retrained/{name}", recipe, seed)
        for name, architecture in named
    ]


def export(run: Run) -> None:
    """Hand the retrained best child over as a Hugging Face folder."""
    from orchestrator.handover import export_best

    export_best(run)


def report(run: Run) -> None:
    """Write the report."""
    from orchestrator.report import write_report

    write_report(run.store)
