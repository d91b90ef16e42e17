"""Distillation's teacher in fine-tuning: its outputs on the training examples, computed once."""

import logging
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.downstream.finetuning import positions_of, predict
from evaluators.downstream.heads import SentenceHead, TaskData
from evaluators.downstream.tasks import Task
from orchestrator.finetuning.trial import kind_of
from orchestrator.hugging_face_models import load_pretrained
from supernet.errors import InvalidInput

logger = logging.getLogger(__name__)


def teacher_logits(model: str, data: TaskData) -> Sequence[Sequence[float]]:
    """One row of logits per training example, in the task's order, by the teacher's tokenizer.

    Raises:
        InvalidInput: as `load_teacher`.
    """
    teacher, tokenizer, order = load_teacher(model, data.task)
    teacher.to("cuda" if torch.cuda.is_available() else "cpu")
    head = SentenceHead(data, tokenizer, max_length=positions_of(teacher) or 512)
    outputs = predict(teacher, head.train_features, tokenizer)
    return [logits[list(order)].tolist() for logits in outputs]


def load_teacher(
    model: str, task: Task
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[int, ...]]:
    """The teacher, and which of its outputs is that of each of the task's labels.

    Raises:
        InvalidInput: if the teacher cannot be loaded, has no fine-tuned head for the task, or the
            task is one of spans, whose tokens are not the student's.
    """
    if task.kind == "spans":
        raise InvalidInput(
            f"finetune.teacher is for tasks with one answer per example, but {task.name!r} asks "
            f"for spans: leave the teacher out"
        )
    teacher, tokenizer = load_pretrained(model, kind_of(task), new_head=False)
    if teacher.config.num_labels != task.num_labels:
        raise InvalidInput(
            f"the teacher of {task.name!r} must have {task.num_labels} outputs, but {model} has "
            f"{teacher.config.num_labels}: give a model that is fine-tuned on this task"
        )
    return teacher, tokenizer, _order(model, teacher, task)


def _order(model: str, teacher: PreTrainedModel, task: Task) -> tuple[int, ...]:
    """Labels by name, for models of the hub number them as they like."""
    plain = tuple(range(task.num_labels))
    names = [str(teacher.config.id2label[number]).lower() for number in plain]
    for wanted in (task.label_names, task.labels):
        if task.kind == "classification" and sorted(names) == sorted(wanted):
            return tuple(names.index(name) for name in wanted)
    if task.kind == "classification" and not all(name.startswith("label_") for name in names):
        logger.warning(
            "labels of the teacher %s are %s, not %s: taken in this order",
            *(model, ", ".join(names), ", ".join(task.label_names)),
        )
    return plain
