"""What a fine-tuning trial does, whoever started it: load, fine-tune, score, keep the model.

Called by Ray's trials and by the in-process twin alike; knows no Ray.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from evaluators.downstream.finetuning import Recipe, check_length, finetune
from evaluators.downstream.heads import TaskData, TaskHead, head_for
from evaluators.downstream.tasks import Task
from orchestrator.config import FinetuneSettings
from orchestrator.hugging_face_models import is_own, load_pretrained, save_pretrained
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, TrainingDiverged
from supernet.manifest import write_manifest

KEPT = "finetuned"
"""Folder of fine-tuned models in the output folder."""


@dataclass(frozen=True)
class ModelSource:
    """Where a trial loads its model from.

    Args:
        name: as the user gave it, for tables.
        place: a folder of the output folder, or a name on the Hugging Face hub.
        stored: whether it is a folder of the output folder.
        digest: of its weights and configuration; of the name where it is the hub's.
    """

    name: str
    place: str
    stored: bool
    digest: str


@dataclass(frozen=True)
class Job:
    """One fine-tuning: a model, a task, a recipe."""

    model: ModelSource
    task: str
    data: str
    """Digest of the task's data."""
    recipe: Recipe
    pretrained: bool
    max_length: int
    keep: bool
    start: str | None = None
    """Folder, in the output folder, of a fine-tuned model to start from (MNLI's)."""
    teacher: str | None = None
    """Name of the teacher, if there is one, and digest of its weights."""
    pooling: str = "cls"
    """What the classifier reads; see `FinetuneSettings.pooling`."""

    @cached_property
    def name(self) -> str:
        """The same for the same work: rows of that name are never made twice."""
        what = {**asdict(self), "model": self.model.digest}
        del what["keep"]
        if self.pooling == "cls":
            del what["pooling"]  # rows from before there was a choice keep their names
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Of the fine-tuned model, in the output folder."""
        return f"{KEPT}/{self.task}/{self.name}"


def run_job(
    store: RunStore,
    job: Job,
    data: TaskData,
    settings: FinetuneSettings,
    *,
    teacher_logits: Sequence[Sequence[float]] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The row of one fine-tuning; a training that diverged has its error in there.

    Raises:
        InvalidInput: if the model cannot be loaded.
        StorageFailed: if its fine-tuned weights cannot be kept.
    """
    quieten()
    set_seed(job.recipe.seed)
    model, tokenizer = load_for(data.task, job, store)
    head = encoded(
        data, tokenizer, settings, max_length=job.max_length, of=f"{job.model.digest} {job.data}"
    )
    row = {
        "name": job.name,
        "model": job.model.name,
        "model_digest": job.model.digest,
        "task": job.task,
        "pretrained": job.pretrained,
        "num_params": sum(p.numel() for p in model.parameters()),
        "max_length": job.max_length,
        "start": job.start,
        "teacher": job.teacher,
        "pooling": job.pooling,
        **job.recipe.key(),
    }
    try:
        done = finetune(
            model, head, job.recipe, teacher_logits=teacher_logits, on_progress=on_progress
        )
    except TrainingDiverged as error:
        return {**row, "error": str(error)}
    if job.keep:
        _keep(store, job, model, tokenizer, done.predictions)
    measured = {**asdict(done), "error": None}
    del measured["predictions"]
    return {**row, **measured}


_encoded: dict[tuple[str, str, int], TaskHead] = {}


def encoded(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuneSettings,
    *,
    max_length: int,
    of: str,
) -> TaskHead:
    """The task's data for a model's tokenizer; the last one is kept for the next trial."""
    key = (data.task.name, of, max_length)
    if key not in _encoded:
        _encoded.clear()
        _encoded[key] = head_for(
            data,
            tokenizer,
            max_length=max_length,
            stride=settings.stride or max_length // 4,
            n_best=settings.n_best,
            max_answer_tokens=settings.max_answer_tokens,
            no_answer_threshold=settings.no_answer_threshold,
        )
    return _encoded[key]


def load_for(
    task: Task, job: Job, store: RunStore
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The job's model with the task's head, on the trial's device."""
    where = job.model.place
    if job.start is not None:
        where = str(folder_here(store, job.start))
    elif job.model.stored:
        where = str(folder_here(store, job.model.place))
    model, tokenizer = load_with_head(where, task, pooling=job.pooling)
    if not job.pretrained:
        set_seed(job.recipe.seed)
        model = type(model)(model.config)
    check_length(job.max_length, tokenizer, model)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def load_with_head(
    where: str, task: Task, *, pooling: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with the task's head; `pooling` is that of classifiers (`FinetuneSettings`).

    Raises:
        InvalidInput: if it cannot be loaded, or is no export and pools in its own way.
    """
    kind, own = kind_of(task), is_own(where)
    if pooling == "mean" and task.kind != "spans" and not own:
        raise InvalidInput(
            f"finetune.pooling=mean is for exports of magic-nas, but {where} is none, and pools as "
            f"its class in transformers does: leave it out"
        )
    overrides: dict[str, Any] = {"classifier_pooling": pooling} if own else {}
    return load_pretrained(where, kind, num_labels=labels_of(task), **overrides)


def quieten() -> None:
    """No reports on heads that begin anew, which is what fine-tuning is for, and no bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def kind_of(task: Task) -> str:
    """Which head a task needs, as `load_pretrained` names it."""
    return "question_answering" if task.kind == "spans" else "sequence_classification"


def labels_of(task: Task) -> int | None:
    """How many outputs the head has: one for a number, two per token for spans."""
    if task.kind == "spans":
        return None
    return 1 if task.kind == "regression" else len(task.labels)


def _keep(
    store: RunStore,
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    predictions: Mapping[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as work, folder_to_fill(store, job.folder) as folder:
        made = Path(work) / "model"
        save_pretrained(model, tokenizer, made)
        (made / "test_predictions.json").write_text(json.dumps(predictions))
        write_manifest(made)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, folder)
