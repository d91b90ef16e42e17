"""What a fine-tuning trial does, whoever started it: load, fine-tune, score, keep the model.

Called by Ray's trials and by the in-process twin alike; knows no Ray.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from evaluators.downstream.finetuning import Recipe, check_length, finetune
from evaluators.downstream.heads import SentenceHead, TaskData, TaskHead
from evaluators.downstream.span_head import SpanHead
from evaluators.downstream.tasks import Task
from orchestrator.config import QUESTION_TOKENS
from orchestrator.finetuning.card import finetuned_card
from orchestrator.hugging_face_models import is_own, load_pretrained, save_pretrained
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed, TrainingDiverged
from supernet.manifest import write_manifest

KEPT = "finetuned"
"""Folder of fine-tuned models in the output folder."""


@dataclass(frozen=True)
class ModelSource:
    """Where a trial loads its model from.

    Args:
        name: as the user gave it, for tables.
        place: a folder of the output folder.
        digest: of its weights, configuration and tokenizer.
        from_hub: whether `name` is one on the Hugging Face hub.
    """

    name: str
    place: str
    digest: str
    from_hub: bool = False


@dataclass(frozen=True)
class SpanSettings:
    """What of `FinetuneSettings` counts for tasks of spans alone."""

    stride: int
    max_question_tokens: int
    n_best: int
    max_answer_tokens: int
    no_answer_threshold: float | None


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
    spans: SpanSettings | None = None
    """Of tasks of spans; none for others."""

    @cached_property
    def name(self) -> str:
        """The same for the same work: rows of that name are never made twice."""
        what = {**asdict(self), "model": self.model.digest}
        del what["keep"]
        if self.pooling == "cls":
            del what["pooling"]  # rows from before there was a choice keep their names
        if self.spans is None:
            del what["spans"]
        elif self.spans.max_question_tokens == QUESTION_TOKENS:
            del what["spans"]["max_question_tokens"]  # likewise
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def folder(self) -> str:
        """Of the fine-tuned model, in the output folder."""
        return f"{KEPT}/{self.task}/{self.name}"


def run_job(
    store: RunStore,
    job: Job,
    data: TaskData,
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
    head = encoded(data, tokenizer, job)
    row = {
        "name": job.name,
        "model": job.model.name,
        "model_digest": job.model.digest,
        "task": job.task,
        "data": job.data,
        "stand_in": data.stand_in,
        "pretrained": job.pretrained,
        "num_params": sum(p.numel() for p in model.parameters()),
        "max_length": job.max_length,
        "start": job.start,
        "teacher": job.teacher,
        "pooling": job.pooling,
        **(asdict(job.spans) if job.spans else {}),
        **job.recipe.key(),
    }
    try:
        done = finetune(
            model,
            head,
            job.recipe,
            teacher_logits=teacher_logits,
            with_predictions=job.keep,
            on_progress=on_progress,
        )
    except TrainingDiverged as error:
        return {**row, "error": str(error)}
    measured = {**asdict(done), "error": None}
    del measured["predictions"]
    row |= measured
    if job.keep:
        hub = job.model.name if job.model.from_hub else None
        texts = {f"{name}.json": json.dumps(value) for name, value in done.predictions.items()}
        texts["README.md"] = finetuned_card(data, row, hub=hub)
        _keep(store, job.folder, model, tokenizer, texts)
    return row


_encoded: dict[tuple[str | int | SpanSettings | None, ...], TaskHead] = {}


def encoded(data: TaskData, tokenizer: PreTrainedTokenizerBase, job: Job) -> TaskHead:
    """The task's data for a model's tokenizer; the last one is kept for the next trial."""
    key = (job.task, job.model.digest, job.data, data.test_digest, job.max_length, job.spans)
    if key not in _encoded:
        _encoded.clear()
        if job.spans is None:
            _encoded[key] = SentenceHead(data, tokenizer, max_length=job.max_length)
        else:
            _encoded[key] = SpanHead(
                data, tokenizer, max_length=job.max_length, **asdict(job.spans)
            )
    return _encoded[key]


def load_for(
    task: Task, job: Job, store: RunStore
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The job's model with the task's head, on the trial's device.

    One that starts from a fine-tuned model does so whether that was pre-trained or not.
    """
    where = str(folder_here(store, job.start or job.model.place))
    model, tokenizer = load_with_head(where, task, pooling=job.pooling)
    if not job.pretrained and job.start is None:
        set_seed(job.recipe.seed)
        model = type(model)(model.config)
    _suit(model, tokenizer, task)
    check_length(job.max_length, model)
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
    return load_pretrained(where, kind, num_labels=task.num_labels, **overrides)


def _suit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task) -> None:
    """What a model's configuration says of an earlier use gives way to the task's."""
    config = model.config
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    if task.kind == "spans":
        tokenizer.padding_side = "right"  # answers' positions count from the first token
        return
    regression = task.kind == "regression"
    config.problem_type = "regression" if regression else "single_label_classification"
    config.id2label = dict(enumerate([task.label] if regression else task.label_names))
    config.label2id = {name: number for number, name in config.id2label.items()}


def quieten() -> None:
    """No reports on heads that begin anew, which is what fine-tuning is for, and no bars."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def kind_of(task: Task) -> str:
    """Which head a task needs, as `load_pretrained` names it."""
    return "question_answering" if task.kind == "spans" else "sequence_classification"


def _keep(
    store: RunStore,
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Mapping[str, str],
) -> None:
    """Under another name first, so that one that is there is whole."""
    with folder_to_fill(store, name, cached=False) as folder:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            save_pretrained(model, tokenizer, partial)
            for file, text in texts.items():
                (partial / file).write_text(text, encoding="utf-8")
            write_manifest(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            raise StorageFailed(
                f"cannot keep a fine-tuned model as {store.uri_of(name)}: {error}; make room or "
                f"mend the access, then run the same command again"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
