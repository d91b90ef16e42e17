"""`magic-nas finetune`: a model on tasks, the recipe chosen on the dev split, several seeds.

Every fine-tuning is a row, by model, data and recipe, and is never done twice. Writes
`finetune.json`, each task's fine-tuned model of median score, and GLUE's submission files; in a
run's folder also its report and the card of its export.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.downstream.finetuning import Recipe, check_length
from evaluators.downstream.heads import TaskData
from evaluators.downstream.reading import read_task
from evaluators.downstream.squad_windows import check_windows
from evaluators.downstream.tasks import Task, task_named
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.digest import digest_of
from orchestrator.finetuning.sources import MODELS, model_source, run_named
from orchestrator.finetuning.submissions import FOLDER as SUBMISSIONS
from orchestrator.finetuning.submissions import write_submissions
from orchestrator.finetuning.summary import ROWS, SUMMARY, read_rows, summarise
from orchestrator.finetuning.teacher import load_teacher, teacher_logits
from orchestrator.finetuning.trial import (
    KEPT,
    Job,
    ModelSource,
    SpanSettings,
    load_with_head,
    quieten,
    run_job,
)
from orchestrator.handover import refresh_card
from orchestrator.lease import LEASE, hold_lease
from orchestrator.log_lines import lines_of
from orchestrator.node_copy import folder_here
from orchestrator.progress import Progress
from orchestrator.report import write_report
from orchestrator.runs import CONFIG, Run
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, MagicNasError, RunConflict
from supernet.manifest import MANIFEST

FROM_MNLI = frozenset({"rte", "mrpc", "stsb"})
"""Tasks that RoBERTa's authors start from the model fine-tuned on MNLI."""

logger = logging.getLogger(__name__)


def finetune(
    model: str,
    tasks: Sequence[str],
    *,
    data: str,
    out: str | Path | None = None,
    settings: FinetuneSettings | None = None,
    address: str | None = None,
    local: bool = False,
) -> dict[str, Any]:
    """Fine-tune a model on tasks; returns what `finetune.json` says of it.

    Args:
        model: see `orchestrator.finetuning.sources`.
        tasks: such as ["sst2", "rte"]; see `evaluators.downstream.tasks`.
        data: "hub", or the folder of the tasks' original files.
        out: where rows, figures and models go: a new folder, an earlier call's, or a run's. None:
            the folder of the run that `model` names.
        address: of a running Ray cluster; none: a local one for the length of the call.
        local: one process without Ray, for small tries.

    Raises:
        InvalidInput: before anything is trained: a task, file, line, model or setting is wrong.
        StorageFailed: if the output folder refuses a write.
        MagicNasError: if no seed of a task came to its end.
    """
    settings = settings or FinetuneSettings()
    wanted = check_tasks(tasks, settings)
    store = RunStore(run_named(model) if out is None else out)
    store.check_writable()
    _refuse_foreign(store)
    run = Run.open(store.uri) if store.exists(CONFIG) else None
    read_rows(store)
    read = {task.name: read_task(task, data) for task in wanted}
    with _no_new_folder(store), hold_lease(store), lines_of(store.name, "finetune"):
        source = model_source(store, model)
        check_model(store, source, wanted, settings)
        study = _Study(store, source, read, settings)
        with _doing(store, address, local, study) as do:
            study.run(do)
        summary = summarise(read_rows(store))
        store.write_json(SUMMARY, summary)
        write_submissions(store, study.chosen, {task.name: task for task in wanted})
        if run is not None:
            refresh_card(run)
            write_report(store)
        if study.failed:
            raise MagicNasError("; ".join(study.failed))
        return summary


def check_tasks(names: Sequence[str], settings: FinetuneSettings) -> list[Task]:
    """The tasks of these names, as far as they and the settings go together.

    Raises:
        InvalidInput: if one is unknown, named twice or there is none, if `finetune.from_mnli` lacks
            mnli, or a teacher is to teach more than one task, or one that it has no answer to.
    """
    tasks = [task_named(name) for name in names]
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated or not names:
        raise InvalidInput(
            f"a fine-tuning is on one or more tasks, each named once, but got "
            f"{', '.join(names) or 'none'}: name other tasks with --task"
        )
    if settings.from_mnli and "mnli" not in names:
        raise InvalidInput(
            f"finetune.from_mnli starts {', '.join(sorted(FROM_MNLI))} from the model that the "
            f"same call fine-tunes on mnli, but the tasks are {', '.join(names)}: add --task mnli"
        )
    if settings.teacher is not None:
        if len(tasks) > 1:
            raise InvalidInput(
                f"finetune.teacher is fine-tuned on one task and teaches that one, but the tasks "
                f"are {', '.join(names)}: make a call for each"
            )
        load_teacher(settings.teacher.model, tasks[0])
    return tasks


def check_model(
    store: RunStore, source: ModelSource, tasks: Sequence[Task], settings: FinetuneSettings
) -> None:
    """Load the model once with each head that is needed.

    Raises:
        InvalidInput: if it has no such head, fewer positions than `finetune.max_length`, or a
            tokenizer that cannot pad or make windows.
    """
    quieten()
    where = str(folder_here(store, source.place)) if source.stored else source.place
    for task in {(task.kind, task.num_labels): task for task in tasks}.values():
        loaded, tokenizer = load_with_head(where, task, pooling=settings.pooling)
        check_tokenizer(source.name, loaded, tokenizer, task)
        check_length(settings.max_length, loaded)
        if task.kind == "spans":
            spans = span_settings(settings)
            try:
                check_windows(tokenizer, max_length=settings.max_length, stride=spans.stride)
            except InvalidInput as error:
                raise InvalidInput(
                    f"finetune.max_length={settings.max_length} leaves no room for windows of a "
                    f"context: {error} (finetune.max_length, finetune.stride)"
                ) from None


def check_tokenizer(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task
) -> None:
    """Refuse a tokenizer that cannot pad, or that marks inputs with tokens the model lacks.

    Raises:
        InvalidInput: naming the token.
    """
    if tokenizer.pad_token_id is None:
        raise InvalidInput(
            f"a batch needs a token to pad with, but the tokenizer of {name} has no pad_token: "
            f"set one (tokenizer.pad_token = tokenizer.eos_token) and save it beside the model"
        )
    if task.kind == "spans" and tokenizer.cls_token_id is None and tokenizer.bos_token_id is None:
        raise InvalidInput(
            f"questions need a token that stands for no answer, but the tokenizer of {name} has "
            f"neither cls_token nor bos_token: set one and save it beside the model"
        )
    ids = [tokenizer.pad_token_id, *tokenizer("a", "b")["input_ids"]]
    size = model.get_input_embeddings().num_embeddings
    if max(ids) >= size:
        raise InvalidInput(
            f"every token must have an embedding, but {name} has {size} and its tokenizer gives "
            f"{tokenizer.convert_ids_to_tokens(max(ids))!r} the id {max(ids)}: resize the model's "
            f"token embeddings"
        )


def span_settings(settings: FinetuneSettings) -> SpanSettings:
    """Those of the settings that count for spans alone, with the default stride."""
    return SpanSettings(
        stride=settings.max_length // 4 if settings.stride is None else settings.stride,
        n_best=settings.n_best,
        max_answer_tokens=settings.max_answer_tokens,
        no_answer_threshold=settings.no_answer_threshold,
    )


Do = Callable[[Sequence[Job], Callable[[dict[str, Any]], None]], None]


class _Study:
    """The grid, then the seeds, of every task."""

    def __init__(
        self,
        store: RunStore,
        source: ModelSource,
        data: Mapping[str, TaskData],
        settings: FinetuneSettings,
    ) -> None:
        self.store, self.source, self.data = store, source, data
        self.settings = settings
        self.taught: dict[str, Sequence[Sequence[float]]] = {}
        """The teacher's outputs on the training examples, per task that is yet to be done."""
        self.chosen: dict[str, Job] = {}
        """The job of median score per task, once it is known."""
        self.failed: list[str] = []
        """What is to say of tasks of which no seed came to its end."""
        self._teacher = _identity(settings.teacher.model) if settings.teacher else None
        self._digests = {name: _digest_of(task) for name, task in data.items()}

    def run(self, do: Do) -> None:
        """MNLI first where others start from it, else all tasks together."""
        starters = [name for name in self.data if name == "mnli"]
        if self.settings.from_mnli and starters:
            self._tasks(starters, do)
            if self.failed:
                raise MagicNasError(self.failed[0])
            self._tasks([name for name in self.data if name not in starters], do)
        else:
            self._tasks(list(self.data), do)

    def _tasks(self, names: Sequence[str], do: Do) -> None:
        settings = self.settings
        first = range(min(settings.selection_seeds, settings.seeds))
        grids = {
            name: [self._jobs(name, recipe, first) for recipe in self._grid()] for name in names
        }
        rows = self._done(do, [job for grid in grids.values() for jobs in grid for job in jobs])
        finals = {}
        for name, grid in grids.items():
            best = max(grid, key=lambda jobs: _median(rows, jobs, nothing=-2.0))
            finals[name] = self._jobs(name, best[0].recipe, range(settings.seeds))
        rows |= self._done(do, [job for jobs in finals.values() for job in jobs])
        for name, jobs in finals.items():
            chosen = _middle(rows, jobs)
            if chosen is None:
                self.failed.append(
                    f"fine-tuning on {name} diverged with every seed "
                    f"({rows[jobs[0].name]['error']}): lower finetune.learning_rates"
                )
                continue
            self.chosen[name] = chosen
            if chosen.keep and not self.store.exists(f"{chosen.folder}/{MANIFEST}"):
                # An earlier call with other seeds dropped its model.
                self._do(do, [chosen], lambda row: None)
            self._drop_others(name)

    def _grid(self) -> list[Recipe]:
        settings = self.settings
        return [
            Recipe(
                learning_rate=rate,
                epochs=epochs,
                seed=0,
                batch_size=settings.batch_size,
                warmup_fraction=settings.warmup_fraction,
                weight_decay=settings.weight_decay,
                clip_norm=settings.clip_norm,
                precision=settings.precision,
                max_steps=settings.max_steps,
                distil_weight=settings.teacher.weight if settings.teacher else 0.0,
                distil_temperature=settings.teacher.temperature if settings.teacher else 2.0,
            )
            for rate in dict.fromkeys(settings.learning_rates)
            for epochs in dict.fromkeys(settings.epochs)
        ]

    def _jobs(self, name: str, recipe: Recipe, seeds: range) -> list[Job]:
        start = self.chosen.get("mnli") if name in FROM_MNLI and self.settings.from_mnli else None
        return [
            Job(
                model=self.source,
                task=name,
                data=self._digests[name],
                recipe=replace(recipe, seed=seed),
                pretrained=self.settings.pretrained,
                max_length=self.settings.max_length,
                keep=self.settings.keep_models or (name == "mnli" and self.settings.from_mnli),
                start=start.folder if start else None,
                teacher=self._teacher,
                pooling=self._pooling(name),
                spans=self._spans(name),
            )
            for seed in seeds
        ]

    def _pooling(self, name: str) -> str:
        """ "cls" for spans, which pool nothing: one fine-tuning whatever the setting."""
        return "cls" if self.data[name].task.kind == "spans" else self.settings.pooling

    def _spans(self, name: str) -> SpanSettings | None:
        return span_settings(self.settings) if self.data[name].task.kind == "spans" else None

    def _done(self, do: Do, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
        """The rows of all these jobs by name; those that have none yet are done."""
        rows = {row["name"]: row for row in read_rows(self.store)}
        todo = [job for job in jobs if job.name not in rows]
        if len(todo) < len(jobs):
            logger.info("%d of %d fine-tunings done before", len(jobs) - len(todo), len(jobs))
        writer = self.store.row_writer(ROWS)

        def on_row(row: dict[str, Any]) -> None:
            rows[row["name"]] = row
            writer.write([row])

        self._do(do, todo, on_row)
        return {job.name: rows[job.name] for job in jobs}

    def _do(self, do: Do, jobs: Sequence[Job], on_row: Callable[[dict[str, Any]], None]) -> None:
        if self.settings.teacher is not None:
            for name in {job.task for job in jobs} - set(self.taught):
                self.taught[name] = teacher_logits(self.settings.teacher.model, self.data[name])
        if jobs:
            do(jobs, on_row)

    def _drop_others(self, name: str) -> None:
        """Of this call's fine-tuned models of a task only the one of median score is kept."""
        for folder in self.store.names(f"{KEPT}/{name}"):
            if folder in self._mine(name) and folder != self.chosen[name].name:
                self.store.delete(f"{KEPT}/{name}/{folder}")

    def _mine(self, name: str) -> set[str]:
        seeds = range(max(self.settings.seeds, self.settings.selection_seeds))
        return {job.name for recipe in self._grid() for job in self._jobs(name, recipe, seeds)}


def _median(rows: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job], *, nothing: float) -> float:
    found = [rows[job.name]["headline"] for job in jobs if rows[job.name]["error"] is None]
    return median(found) if found else nothing


def _middle(rows: Mapping[str, Mapping[str, Any]], jobs: Sequence[Job]) -> Job | None:
    """The job whose score is the (lower) median's; None where all diverged."""
    ended = [job for job in jobs if rows[job.name]["error"] is None]
    if not ended:
        return None
    ended.sort(key=lambda job: (rows[job.name]["headline"], job.name))
    return ended[(len(ended) - 1) // 2]


def _identity(model: str) -> str:
    """A model's name, with a digest of its content where it is a folder."""
    folder = Path(model)
    return f"{model} {digest_of(folder)}" if folder.is_dir() else model


def _digest_of(data: TaskData) -> str:
    """Of what is trained and judged on: other files of the same task are other rows."""
    found = hashlib.sha256()
    for part in (data.train, *(data.dev[name] for name in sorted(data.dev))):
        found.update(repr(part).encode())
    return found.hexdigest()[:16]


@contextmanager
def _doing(store: RunStore, address: str | None, local: bool, study: _Study) -> Iterator[Do]:
    """What does jobs: trials on a cluster, or a loop in this process."""
    if local:
        yield lambda jobs, on_row: _do_here(store, jobs, study, on_row)
        return
    from orchestrator.on_ray.cluster import connect

    logger.info("connecting to Ray %s", f"at {address}" if address else "on this machine")
    with connect(address, user_code=None, name=store.name) as cluster:
        if address:
            from orchestrator.on_ray.nodes import check_nodes

            check_nodes(store)

        def do(jobs: Sequence[Job], on_row: Callable[[dict[str, Any]], None]) -> None:
            from orchestrator.on_ray.finetuning import finetune_on_ray

            with _shown(store, jobs) as shown:

                def on_both(row: dict[str, Any]) -> None:
                    on_row(row)
                    shown.row(row)

                finetune_on_ray(
                    store,
                    cluster,
                    jobs,
                    study.data,
                    teacher_logits=study.taught,
                    on_progress=shown.step,
                    on_row=on_both,
                )

        yield do


def _do_here(
    store: RunStore,
    jobs: Sequence[Job],
    study: _Study,
    on_row: Callable[[dict[str, Any]], None],
) -> None:
    with _shown(store, jobs) as shown:
        for job in jobs:
            row = run_job(
                store,
                job,
                study.data[job.task],
                teacher_logits=study.taught.get(job.task),
                on_progress=lambda step, steps, job=job: shown.step(job, step, steps),  # type: ignore[misc]
            )
            on_row(row)
            shown.row(row)


class _Shown:
    """Fine-tunings done so far, counted in parts of one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._parts: dict[str, float] = {}

    def step(self, job: Job, step: int, steps: int) -> None:
        """Steps done of a job."""
        self._parts[job.name] = step / steps
        self._show("")

    def row(self, row: Mapping[str, Any]) -> None:
        """A job is done."""
        self._parts[row["name"]] = 1.0
        self._show(
            f"{row['task']} {'diverged' if row['error'] else format(row['headline'], '.3f')}"
        )

    def _show(self, note: str) -> None:
        self._progress.at(int(sum(self._parts.values())), note)


@contextmanager
def _shown(store: RunStore, jobs: Sequence[Job]) -> Iterator[_Shown]:
    with Progress(store.name, "finetune", total=len(jobs), unit="job") as progress:
        yield _Shown(progress)


@contextmanager
def _no_new_folder(store: RunStore) -> Iterator[None]:
    """Bad input that is found before anything is trained leaves no folder behind."""
    new = not store.exists()
    try:
        yield
    except InvalidInput:
        if new and not store.exists("rows"):
            store.delete(MODELS)
            store.delete_if_empty()
        raise


def _refuse_foreign(store: RunStore) -> None:
    """A folder that holds something else than a run or fine-tunings is not written into."""
    ours = {LEASE, "rows", MODELS, KEPT, SUMMARY, SUBMISSIONS, "ray"}
    names = set(store.names(""))
    if names and not store.exists(CONFIG) and not names <= ours:
        raise RunConflict(
            f"the output folder must be new, empty, a run's or of earlier fine-tunings, but "
            f"{store.uri} holds {', '.join(sorted(names - ours)[:3])}: give another with --out"
        )
