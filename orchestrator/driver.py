"""The driver: from text to an exported model, one call per arrow of the README's diagram.

Every stage reads what the one before wrote into the run's folder, is skipped once finished, and
goes on from its last checkpoint or row when it was interrupted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators.own_scorer import OwnScore
from orchestrator import stages
from orchestrator.baseline import baseline_paths
from orchestrator.config import Config, parse, read_yaml
from orchestrator.finetuning.short import read_examples
from orchestrator.lease import LEASE, hold_lease
from orchestrator.log_lines import lines_of
from orchestrator.runinfo import describe, is_finished, stage_record
from orchestrator.runs import CONFIG, Run
from orchestrator.searchers import AskTell
from orchestrator.store import RunStore
from orchestrator.teacher import named_teacher
from orchestrator.validation import check_before_start
from orchestrator.workers import Workers, workers
from supernet.errors import InvalidInput, RunConflict

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

STAGES = ("data", "train", "search", "retrain", "export", "report")
FREE_KEYS = (
    "train.workers",
    "train.placement",
    "search.evaluators",
    "trackers",
    "interference.",
    "rank.",
    "finetune.",
)
"""Beginnings of keys that change where the work is done, or what is measured of it afterwards, but
not what comes out: they may differ on resuming."""

logger = logging.getLogger(__name__)


def run(
    config: Config,
    *,
    out: str | Path,
    address: str | None = None,
    local: bool = False,
    only: Sequence[str] = STAGES,
    searcher: AskTell | None = None,
    scorer: OwnScore | None = None,
    checkpoint: str | None = None,
) -> Run:
    """Do the stages `only` that are not finished, in order.

    Args:
        config: what to do.
        out: the run's folder; the same configuration goes on where it stopped.
        address: of a running Ray cluster; none: a local one for the length of the call.
        local: one process without Ray, for small tries.
        searcher: the searcher, in place of the configuration's.
        scorer: your own score, a function of an architecture that gives its metrics by name, in
            place of the configuration's; no super-net is trained then.
        checkpoint: the super-net checkpoint to search, such as "step-00000400"; none: the newest.

    Raises:
        InvalidInput: before anything expensive starts.
        TrainingDiverged: if a loss is no longer finite.
        StorageFailed: if the run's storage refuses a write.
    """
    store = RunStore(out)
    searches = "search" in only and not is_finished(store, "search")
    check_before_start(config, local=local, address=address, own=scorer is not None or not searches)
    store.check_writable()
    _refuse_other_configuration(store, config)
    this = Run(store, config)
    if stages.scores_own(this, scorer):
        only = [stage for stage in only if stage != "train"]
    todo = [stage for stage in STAGES if stage in only and not is_finished(store, stage)]
    _refuse_missing_stage(store, only, todo, own=stages.scores_own(this, scorer))
    examples = read_examples(config) if "search" in todo else None
    if "retrain" in todo:
        baseline_paths(this.space)
    with (
        lines_of(store.name, "start"),
        _nothing_left_behind(store),
        hold_lease(store),
        ExitStack() as opened,
    ):
        connect = partial(workers, this, address=address, local=local, todo=todo)
        # A cluster that cannot do the run is refused before data is read.
        on = opened.enter_context(connect()) if address else None
        if todo:
            store.write_bytes(CONFIG, config.to_yaml().encode())
            describe(store, seed=config.seed)
        if "data" in only:
            _once(this, "data", lambda: stages.prepare_data(this))
        if this.has_data:
            stages.prepare_costs(this)
            if {"train", "retrain"} & set(todo):
                named_teacher(this)  # refused now, and not in a worker
        if checkpoint and is_finished(store, "train"):
            stages.checkpoint_to_search(this, checkpoint)
        _work(
            this,
            on or opened.enter_context(connect()),
            only,
            searcher,
            scorer,
            checkpoint,
            examples,
        )
    return this


def search(
    out: str | Path,
    *,
    config: Config | None = None,
    searcher: AskTell | None = None,
    scorer: OwnScore | None = None,
    address: str | None = None,
    local: bool = False,
) -> Run:
    """Search a run whose super-net is trained, or any space by a score of your own.

    Args:
        config: for a new run, which needs a `scorer`; none: that of the run.
        searcher: in place of the configuration's; see `orchestrator.searchers`.
        scorer: in place of inherited weights; see `run`.

    Raises:
        InvalidInput: if there is no such run, or neither a trained super-net nor a scorer.
    """
    return run(
        config or Run.open(out).config,
        out=out,
        address=address,
        local=local,
        only=("search",),
        searcher=searcher,
        scorer=scorer,
    )


def _work(
    this: Run,
    on: Workers,
    only: Sequence[str],
    searcher: AskTell | None,
    scorer: OwnScore | None,
    checkpoint: str | None,
    examples: "TaskData | None",
) -> None:
    work: dict[str, Callable[[], None]] = {
        "train": lambda: stages.train(this, on),
        "search": lambda: stages.search(
            this, on, searcher=searcher, own=scorer, checkpoint=checkpoint, examples=examples
        ),
        "retrain": lambda: stages.retrain(this, on),
        "export": lambda: stages.export(this),
        "report": lambda: stages.report(this),
    }
    for stage in STAGES[1:]:
        if stage in only:
            _once(this, stage, work[stage])


def _once(this: Run, stage: str, work: Callable[[], None]) -> None:
    if is_finished(this.store, stage):
        logger.info("%s: finished before, skipped", stage)
        return
    with stage_record(this.store, stage), lines_of(this.store.name, stage):
        work()


def _refuse_missing_stage(
    store: RunStore, only: Sequence[str], todo: Sequence[str], *, own: bool
) -> None:
    if not todo:
        return
    before = [stage for stage in STAGES[: STAGES.index(todo[0])] if not (own and stage == "train")]
    if own and todo[0] == "search":
        return
    missing = [name for name in before if name not in only and not is_finished(store, name)]
    if missing:
        command = "train" if missing[0] == "data" else missing[0]
        raise InvalidInput(
            f"'{todo[0]}' needs the stages before it, but '{missing[0]}' is not finished in "
            f"{store.uri}: run 'magic-nas {command}' or 'magic-nas run' first, or check --out"
        )


def _refuse_other_configuration(store: RunStore, config: Config) -> None:
    if not store.exists(CONFIG):
        foreign = [name for name in store.names("") if name != LEASE]
        if foreign:
            raise RunConflict(
                f"the output folder must be new, empty or a run's, but {store.uri} holds "
                f"{', '.join(foreign[:3])}: give another folder with --out"
            )
        return
    try:
        before = parse(read_yaml(store.read_bytes(CONFIG), CONFIG))
    except InvalidInput as error:
        raise RunConflict(
            f"{store.uri} holds a run of another version ({error}): give another folder"
        ) from None
    differences = [
        f"{key}: {old!r} there, {new!r} now"
        for key, old, new in _differences(before.model_dump(), config.model_dump())
        if not key.startswith(FREE_KEYS)
    ]
    if differences:
        raise RunConflict(
            f"{store.uri} holds the run of another configuration:\n  "
            + "\n  ".join(differences)
            + "\ngo on with the one there (leave out --config and --set), or give another folder "
            "with --out"
        )


def _differences(
    before: dict[str, Any], now: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new


@contextmanager
def _nothing_left_behind(store: RunStore) -> Iterator[None]:
    """Where bad input stops a new run before its first step or score, remove its files again."""
    folder_existed, run_existed = store.exists(), store.exists(CONFIG)
    try:
        yield
    except RunConflict:
        raise
    except InvalidInput:
        if not run_existed and not store.names("supernet") and not store.names("rows"):
            for name in store.names("") if folder_existed else [""]:
                store.delete(name)
        raise
