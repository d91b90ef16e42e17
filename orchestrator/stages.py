"""The stages of a run, each from the run's folder into the run's folder.

Where the work is done is behind `Workers`: on Ray, or in this process.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from orchestrator.baseline import handmade_baseline, random_controls
from orchestrator.candidates import CandidateStream
from orchestrator.leaderboard import load_leaderboard, write_leaderboard
from orchestrator.progress import Progress
from orchestrator.runinfo import update_info
from orchestrator.runs import SUPERNET, Run
from orchestrator.searchers import AskTell, as_ask_tell, build_searcher
from orchestrator.training import ModelPlan
from supernet.checkpoint import latest_checkpoint, load_checkpoint, version_of
from supernet.data.masking import unigram_nats
from supernet.data.prepare import prepare
from supernet.data.summary import check_batch
from supernet.errors import InvalidInput, MagicNasError, RunConflict, SuperNetCollapsed
from supernet.space import Architecture

LEARNT_NATS = 0.5
"""A model has learnt if it is this far below the unigrams' cross-entropy; our own bar."""

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
        on_progress: Callable[[CandidateStream], None],
    ) -> None: ...

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
        from orchestrator.on_ray.retraining import retrain_on_ray
        from orchestrator.on_ray.search import search_on_ray
        from orchestrator.on_ray.training import train_on_ray

        self._cluster = cluster
        self._train, self._search, self._retrain = train_on_ray, search_on_ray, retrain_on_ray

    def train(self, run: Run, on_progress: Callable[[dict[str, Any]], None]) -> None:
        """See `orchestrator.on_ray.training`."""
        self._train(run, self._cluster, on_progress)

    def search(
        self,
        run: Run,
        stream: CandidateStream,
        *,
        checkpoint: str,
        on_progress: Callable[[CandidateStream], None],
    ) -> None:
        """See `orchestrator.on_ray.search`."""
        self._search(run, self._cluster, stream, checkpoint=checkpoint, on_progress=on_progress)

    def retrain(
        self,
        run: Run,
        models: Sequence[ModelPlan],
        on_progress: Callable[[str, dict[str, Any]], None],
    ) -> None:
        """See `orchestrator.on_ray.retraining`."""
        self._retrain(run, self._cluster, models, on_progress)


@contextmanager
def workers(run: Run, *, address: str | None, local: bool, wanted: bool) -> Iterator[Workers]:
    """Connect to where the work is done, if any stage wants it."""
    if local or not wanted:
        yield LocalWorkers()
        return
    from orchestrator.on_ray.cluster import connect

    logger.info("connecting to Ray %s", f"at {address}" if address else "on this machine")
    with connect(address, user_code=run.config.user_code) as cluster:
        logger.info("Ray has %d CPU cores and %d GPUs", cluster.num_cpus, cluster.num_gpus)
        yield RayWorkers(cluster)


def prepare_data(run: Run) -> None:
    """Read, split, tokenise, pack; what an attempt that was killed has left is removed first."""
    run.store.delete("data")
    for left in run.data_folder.parent.glob(".data-*"):
        shutil.rmtree(left)
    with Progress("data", total=0, unit="doc") as progress:
        prepare(
            run.config.data,
            run.data_folder,
            seed=run.config.seed,
            on_progress=lambda what, done, total: progress.at(done, note=what),
        )


def check_data(run: Run) -> None:
    """Check what needs the data: the batch fits, and some architecture meets the limits."""
    for settings in (run.config.train, run.config.retrain):
        check_batch(run.summary, batch_size=settings.batch_size)
    run.limits.check_feasible(run.cost_model)


def train(run: Run, on: Workers) -> None:
    """Train the super-net."""
    done = latest_checkpoint(run.store, SUPERNET, optimizer=False)
    initial = done.step if done else 0
    total = run.config.train.steps
    with Progress("train", total=total, unit="step", initial=initial) as progress:
        on.train(run, lambda row: _show_training(progress, row))
        progress.at(total)
    _check_learnt(run)


def _check_learnt(run: Run) -> None:
    """Record how far the probe paths came below the unigrams; too little is a collapse."""
    settings = run.config.train
    last = [row for row in run.store.rows("probe") if row["step"] == settings.steps]
    losses = {row["architecture"]: row["val_loss_nats"] for row in last}
    if not losses:
        return
    loss = sum(losses.values()) / len(losses)
    unigram = unigram_nats(
        run.data_folder, "valid", num_sequences=settings.probe_sequences, seed=run.config.seed
    )
    margin = settings.collapsed_within_nats
    collapsed = margin is not None and not loss < unigram - margin
    update_info(
        run.store,
        supernet={"probe_loss_nats": loss, "unigram_nats": unigram, "collapsed": collapsed},
    )
    if collapsed:
        raise SuperNetCollapsed(
            f"the super-net has collapsed: its probe paths must end {margin} nats below the "
            f"training unigrams ({unigram:.3f} nats on the same targets), but are at {loss:.3f} "
            f"nats on average: train longer, or lower train.align.weight if alignment is on, and "
            f"give another output folder"
        )


def _show_training(progress: Progress, row: dict[str, Any]) -> None:
    if row:
        progress.at(row["step"], note=f"loss {row['loss_nats']:.3f} nats")


def search(run: Run, on: Workers, *, searcher: AskTell | None, checkpoint: str | None) -> None:
    """Score candidates with inherited weights, then write the leaderboard."""
    name = checkpoint_to_search(run, checkpoint)
    settings = run.config.search
    stream = CandidateStream(
        run.store,
        run.space,
        run.cost_model,
        run.limits,
        _searcher(run) if searcher is None else as_ask_tell(searcher, run.space),
        total=settings.candidates,
        supernet_version=version_of(run.store, name),
    )
    with Progress(
        "search", total=settings.candidates, unit="child", initial=stream.done
    ) as progress:
        on.search(run, stream, checkpoint=name, on_progress=partial(_show_search, progress))
    if stream.done < stream.total:
        raise MagicNasError(
            f"the search ended with {stream.done} of {stream.total} children scored; these "
            f"are kept: run the same command again"
        )
    write_leaderboard(run.store)


def _searcher(run: Run) -> AskTell:
    return build_searcher(run.config.search.searcher, run.space, seed=run.config.seed)


def _show_search(progress: Progress, stream: CandidateStream) -> None:
    best = stream.best
    progress.at(stream.done, note=f"best {best['val_loss_nats']:.3f} nats" if best else "")


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
    _compare(run, [run.store.read_json(f"{model.folder}/result.json") for model in models])


def train_alone(run: Run, on: Workers, models: Sequence[ModelPlan], *, stage: str) -> None:
    """Train each model that has no result yet, showing the steps of all of them."""
    todo = [m for m in models if not run.store.exists(f"{m.folder}/result.json")]
    steps = {m.name: 0 if m in todo else m.recipe.steps for m in models}
    with Progress(stage, total=sum(m.recipe.steps for m in models), unit="step") as progress:

        def show(name: str, row: dict[str, Any]) -> None:
            steps[name] = row["step"]
            progress.at(sum(steps.values()), note=f"{name} {row['loss_nats']:.3f} nats")

        if todo:
            on.retrain(run, todo, show)
        progress.at(sum(m.recipe.steps for m in models))


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
    unigram = {
        split: unigram_nats(run.data_folder, split, num_sequences=sequences, seed=run.config.seed)
        for split, sequences in (
            ("valid", run.config.search.valid_sequences),
            ("test", run.config.retrain.test_sequences),
        )
    }
    bar = unigram["test"] - LEARNT_NATS
    unlearnt = [
        f"{result['name']} ({result['test_loss_nats']:.3f} nats)"
        for result in results
        if result["name"] in ("best", "baseline") and result["test_loss_nats"] > bar
    ]
    reason = (
        f"{' and '.join(unlearnt)} did not come {LEARNT_NATS} nats below the training unigrams "
        f"({unigram['test']:.3f} nats) on the test targets: train longer"
        if unlearnt
        else f"best child and baseline are {LEARNT_NATS} nats or more below the training unigrams"
    )
    update_info(
        run.store,
        models=results,
        unigram_nats=unigram,
        comparison={"valid": not unlearnt, "reason": reason},
    )


def export(run: Run) -> None:
    """Hand the retrained best child over as a Hugging Face folder."""
    from orchestrator.handover import export_best

    export_best(run)


def report(run: Run) -> None:
    """Write the report."""
    from orchestrator.report import write_report

    write_report(run.store)
