"""Distillation's teacher in fine-tuning: its outputs on the training examples, computed once."""

from collections.abc import Sequence

from evaluators.downstream.finetuning import positions_of, predict
from evaluators.downstream.heads import SentenceHead, TaskData
from orchestrator.finetuning.trial import kind_of, labels_of
from orchestrator.hugging_face_models import load_pretrained
from supernet.errors import InvalidInput


def teacher_logits(model: str, data: TaskData) -> Sequence[Sequence[float]]:
    """One row of logits per training example, with the teacher's own tokenizer.

    Raises:
        InvalidInput: if the teacher cannot be loaded, has no fine-tuned head for the task, or the
            task is one of spans, whose tokens are not the student's.
    """
    task = data.task
    if task.kind == "spans":
        raise InvalidInput(
            f"finetune.teacher is for tasks with one answer per example, but {task.name!r} asks "
            f"for spans: leave the teacher out"
        )
    teacher, tokenizer = load_pretrained(model, kind_of(task), new_head=False)
    wanted = labels_of(task)
    if teacher.config.num_labels != wanted:
        raise InvalidInput(
            f"the teacher of {task.name!r} must have {wanted} outputs, but {model} has "
            f"{teacher.config.num_labels}: give a model that is fine-tuned on this task"
        )
    head = SentenceHead(data, tokenizer, max_length=positions_of(teacher) or 512)
    return [logits.tolist() for logits in predict(teacher, head.train_features, tokenizer)]
