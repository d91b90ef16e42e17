"""The stages of a run, each from the run's folder into the run's folder.

Where the work is done is behind `Workers`: on Ray, or in this process.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

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
from orchestrator.node_copy import folder_to_fill
from orchestrator.objectives import Objectives
from orchestrator.progress import Progress
from orchestrator.runinfo import update_info
from orchestrator.runs import LATENCY, SUPERNET, Run
from orchestrator.scoring import OWN
from orchestrator.searchers import AskTell, as_ask_tell, build_searcher
from orchestrator.trackers import Trackers
from orchestrator.training import ModelPlan
from supernet.checkpoint import latest_checkpoint, load_checkpoint, version_of
from supernet.data.masking import unigram_nats
from supernet.data.prepare import prepare
from supernet.data.summary import check_batch
from supernet.errors import InvalidInput, MagicNasError, RunConflict, SuperNetCollapsed
from supernet.space import Architecture

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData

NEEDS_WORKERS = frozenset({"train", "search", "retrain"})

LEARNT_NATS = 0.5
"""A model has learnt if it is this far below the unigrams' cross-entropy; our own bar.

For replaced tokens that bar is for the model's generator.
"""
LEARNT_SHARE = 0.02
"""One that tells replaced tokens has learnt if its loss is by this share below the entropy of how
many are replaced, which one that looks at no token would have; our own bar."""

GENERATOR_FIGURES = ("generator_loss_nats", "replaced_entropy_nats")

LINES_BELOW = 12
"""Of the live leaderboard, below the search's bar."""

logger = logging.getLogger(__name__)


class Workers(Protocol):
    """Where training and scoring are done."""

    def train(self, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None: ...

    def search(
        self,
        run: Run,
        stream: CandidateStream,
        *,
        checkpoint: str,
        own: OwnScore | None,
        examples: "TaskData | None",
        on_progress: Callable[[CandidateStream], None],
    ) -> float: ...

    def retrain(
        self,
        run: Run,
        models: Sequence[ModelPlan],
        on_progress: Callable[[str, dict[str, Any]], None],
    ) -> None: ...


class LocalWorkers:
    """In this process, without Ray."""

    def __init__(self) -> None:
        from orchestrator import local

        self.train = local.train_locally
        self.search = local.search_locally
        self.retrain = local.retrain_locally


class RayWorkers:
    """On a Ray cluster."""

    def __init__(self, cluster: Any) -> None:
        from orchestrator.on_ray import metrics
        from orchestrator.on_ray.losses import losses_told
        from orchestrator.on_ray.retraining import retrain_on_ray
        from orchestrator.on_ray.search import search_on_ray
        from orchestrator.on_ray.training import train_on_ray

        self._cluster, self._metrics, self._losses_told = cluster, metrics, losses_told
        self._train, self._search, self._retrain = train_on_ray, search_on_ray, retrain_on_ray

    def train(self, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None:
        """See `orchestrator.on_ray.training`."""
        with self._losses_told("training"):
            self._train(run, self._cluster, self._metrics.with_training(run, on_progress))

    def search(
        self,
        run: Run,
        stream: CandidateStream,
        *,
        checkpoint: str,
        own: OwnScore | None,
        examples: "TaskData | None",
        on_progress: Callable[[CandidateStream], None],
    ) -> float:
        """See `orchestrator.on_ray.search`."""
        show = self._metrics.with_search(run, on_progress)
        with self._losses_told("the search"):
            return self._search(
                run,
                self._cluster,
                stream,
                checkpoint=checkpoint,
                own=own,
                examples=examples,
                on_progress=show,
            )

    def retrain(
        self,
        run: Run,
        models: Sequence[ModelPlan],
        on_progress: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """See `orchestrator.on_ray.retraining`."""
        show = self._metrics.with_retraining(run, models, on_progress)
        with self._losses_told("stand-alone training"):
            self._retrain(run, self._cluster, models, show)


@contextmanager
def workers(
    run: Run, *, address: str | None, local: bool, todo: Collection[str]
) -> Iterator[Workers]:
    """Connect to where the work is done, if a stage to do wants it, and check that it can be done.

    Raises:
        InvalidInput: if no cluster answers, has another version of magic-nas on a node, does not
            reach the run's folder from everywhere, or can never have the workers asked for.
    """
    if local or not NEEDS_WORKERS.intersection(todo):
        yield LocalWorkers()
        return
    from orchestrator.on_ray.cluster import connect

    logger.info("connecting to Ray %s", f"at {address}" if address else "on this machine")
    with connect(address, user_code=run.config.user_code, name=run.store.name) as cluster:
        logger.info("Ray has %d CPU cores and %d GPUs", cluster.num_cpus, cluster.num_gpus)
        if "train" in todo:
            cluster.for_training().check(run.config.train.workers, setting="train.workers")
        if "search" in todo:
            cluster.check(run.config.search.evaluators, setting="search.evaluators")
        if address:
            from orchestrator.on_ray.nodes import check_nodes

            check_nodes(run.store)
        yield RayWorkers(cluster)


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
    _check_learnt(run)


def _check_learnt(run: Run) -> None:
    """Record how far the probe paths came below the unigrams; too little is a collapse.

    For replaced tokens it is their generator that is compared with the unigrams, and the probe
    paths with the entropy of the share of replaced tokens.
    """
    settings = run.config.train
    last = [row for row in run.store.rows("probe") if row["step"] == settings.steps]
    losses = {row["architecture"]: row["val_loss_nats"] for row in last}
    if not losses:
        return
    probe_loss = sum(losses.values()) / len(losses)
    figures = {name: last[-1][name] for name in GENERATOR_FIGURES if name in last[-1]}
    loss = figures.get("generator_loss_nats", probe_loss)
    learner = "its generator" if figures else "its probe paths"
    unigram = unigram_nats(
        run.data_folder, "valid", num_sequences=settings.probe_sequences, seed=run.config.seed
    )
    margin = settings.collapsed_within_nats
    collapsed = margin is not None and not loss < unigram - margin
    blind = margin is not None and bool(figures) and not tells_replaced(probe_loss, figures)
    update_info(
        run.store,
        supernet={
            "probe_loss_nats": probe_loss,
            "unigram_nats": unigram,
            "collapsed": collapsed or blind,
            **figures,
        },
    )
    if collapsed:
        raise SuperNetCollapsed(
            f"the super-net has collapsed: {learner} must end {margin} nats below the training "
            f"unigrams ({unigram:.3f} nats on the same targets), but {'is' if figures else 'are'} "
            f"at {loss:.3f} nats on average: train longer, or lower train.align.weight if "
            f"alignment is on, and give another output folder"
        )
    if blind:
        raise SuperNetCollapsed(
            f"the super-net has collapsed: its probe paths must tell replaced tokens by a loss "
            f"below {1 - LEARNT_SHARE:.2f} times what their share alone gives "
            f"({figures['replaced_entropy_nats']:.4f} nats), but are at {probe_loss:.4f} nats on "
            f"average: lower train.learning_rate or train longer, and give another output folder"
        )


def tells_replaced(loss: float, figures: Mapping[str, float]) -> bool:
    """Whether a discriminator has learnt, by `LEARNT_SHARE`."""
    return loss < (1 - LEARNT_SHARE) * figures["replaced_entropy_nats"]


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
    _compare(run, [run.store.read_json(f"{model.folder}/result.json") for model in models])


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


def _compare(run: Run, results: list[dict[str, Any]]) -> None:
    """Record the models, and whether best and baseline have learnt enough to be compared."""
    unigram = {
        split: unigram_nats(run.data_folder, split, num_sequences=sequences, seed=run.config.seed)
        for split, sequences in (
            ("valid", run.config.search.valid_sequences),
            ("test", run.config.retrain.test_sequences),
        )
    }
    reason = _not_learnt(results, unigram["test"])
    by_generator = run.config.pretraining.objective == "replaced_tokens"
    learners = f"{'the generators of ' if by_generator else ''}best child and baseline"
    update_info(
        run.store,
        models=results,
        unigram_nats=unigram,
        comparison={
            "valid": reason is None,
            "reason": reason
            or f"{learners} are {LEARNT_NATS} nats or more below the training unigrams",
        },
    )


def _not_learnt(results: list[dict[str, Any]], unigram: float) -> str | None:
    """Why best child and baseline cannot be compared, by the loss that unigrams have too."""
    losses = {
        (
            f"{result['name']}'s generator" if "generator_loss_nats" in result else result["name"]
        ): result.get("generator_loss_nats", result["test_loss_nats"])
        for result in results
        if result["name"] in ("best", "baseline")
    }
    bar = unigram - LEARNT_NATS
    unlearnt = [f"{name} ({loss:.3f} nats)" for name, loss in losses.items() if loss > bar]
    if unlearnt:
        return (
            f"{' and '.join(unlearnt)} did not come {LEARNT_NATS} nats below the training unigrams "
            f"({unigram:.3f} nats) on the test targets: train longer"
        )
    blind = [
        f"{result['name']} ({result['test_loss_nats']:.4f} nats)"
        for result in results
        if result["name"] in ("best", "baseline")
        and "replaced_entropy_nats" in result
        and not tells_replaced(result["test_loss_nats"], result)
    ]
    if blind:
        return (
            f"{' and '.join(blind)} cannot tell replaced tokens better than their share does: "
            f"lower retrain.learning_rate or train longer"
        )
    return None


def export(run: Run) -> None:
    """Hand the retrained best child over as a Hugging Face folder."""
    from orchestrator.handover import export_best

    export_best(run)


def report(run: Run) -> None:
    """Write the report."""
    from orchestrator.report import write_report

    write_report(run.store)
