"""The fine-tunings of a call: the grid of recipes by the first seeds, then all seeds of the best.

Tasks side by side; a fine-tuning that has its row is not done again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from evaluators.downstream.finetuning import Recipe
from evaluators.downstream.heads import TEST_PREDICTIONS, TaskData
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.digest import digest_of
from orchestrator.finetuning.summary import CHOICES, ROWS, read_rows
from orchestrator.finetuning.teacher import teacher_logits
from orchestrator.finetuning.trial import KEPT, Job, ModelSource, SpanSettings
from orchestrator.hugging_face_models import hub_files
from orchestrator.store import RunStore
from supernet.manifest import MANIFEST

FROM_MNLI = frozenset({"rte", "mrpc", "stsb"})
"""Tasks that RoBERTa's authors start from the model fine-tuned on MNLI."""

logger = logging.getLogger(__name__)

Do = Callable[[Sequence[Job], Callable[[dict[str, Any]], None]], None]
"""Does jobs, and hands over each one's row as it comes."""


class Study:
    """The grid, then the seeds, of every task."""

    def __init__(
        self,
        store: RunStore,
        source: ModelSource,
        data: Mapping[str, TaskData],
        settings: FinetuneSettings,
        *,
        max_length: int,
    ) -> None:
        self.store, self.source, self.data = store, source, data
        self.settings, self._max_length = settings, max_length
        self.taught: dict[str, Sequence[Sequence[float]]] = {}
        """The teacher's outputs on the training examples, per task that is yet to be done."""
        self.chosen: dict[str, Job] = {}
        """The job of median score per task, once it is known."""
        self.failed: list[str] = []
        """What is to say of tasks of which no seed came to its end."""
        self._teacher = _identity(settings.teacher.model) if settings.teacher else None

    def run(self, do: Do) -> None:
        """MNLI first where others start from it, else all tasks together."""
        names = list(self.data)
        if self.settings.from_mnli:
            self._tasks(["mnli"], do)
            names.remove("mnli")
            if waiting := FROM_MNLI.intersection(names) if self.failed else None:
                self.failed.append(f"{', '.join(sorted(waiting))} had no model to start from")
                names = [name for name in names if name not in waiting]
        self._tasks(names, do)

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
        writer = self.store.row_writer(CHOICES)
        for name, jobs in finals.items():
            writer.write([{"names": [job.name for job in jobs]}])
            chosen = _middle(rows, jobs)
            if chosen is None:
                self.failed.append(
                    f"fine-tuning on {name} diverged with every seed "
                    f"({rows[jobs[0].name]['error']}): lower finetune.learning_rates"
                )
                continue
            self.chosen[name] = chosen
            if chosen.keep and not self._kept(chosen):
                self._do(do, [chosen], lambda row: None)
            self._drop_others(name)

    def _kept(self, job: Job) -> bool:
        """Whether its model is there: not if an earlier call chose another, or had other tests."""
        if not self.store.exists(f"{job.folder}/{MANIFEST}"):
            return False
        data, file = self.data[job.task], f"{job.folder}/{TEST_PREDICTIONS}.json"
        return not data.test or self.store.read_json(file).get("data") == data.test_digest

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
                data=self.data[name].digest,
                recipe=replace(recipe, seed=seed),
                pretrained=self.settings.pretrained,
                max_length=self._max_length,
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
        if self.data[name].task.kind != "spans":
            return None
        return span_settings(self.settings, self._max_length)

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
    """A model's name with a digest of its content."""
    if Path(model).is_dir():
        return f"{model} {digest_of(Path(model))}"
    with hub_files(model) as files:
        return f"{model} {digest_of(files)}"


def span_settings(settings: FinetuneSettings, max_length: int) -> SpanSettings:
    """Those of the settings that count for spans alone, with the default stride."""
    return SpanSettings(
        stride=max_length // 4 if settings.stride is None else settings.stride,
        max_question_tokens=settings.max_question_tokens,
        n_best=settings.n_best,
        max_answer_tokens=settings.max_answer_tokens,
        no_answer_threshold=settings.no_answer_threshold,
    )
