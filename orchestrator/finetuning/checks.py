"""What is checked before anything is fine-tuned: tasks, model, tokenizer, output folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluators.downstream.finetuning import check_length, positions_of
from evaluators.downstream.squad_windows import check_windows
from evaluators.downstream.tasks import Task, task_named
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.sources import MODELS
from orchestrator.finetuning.study import FROM_MNLI, span_settings
from orchestrator.finetuning.submissions import FOLDER as SUBMISSIONS
from orchestrator.finetuning.summary import SUMMARY
from orchestrator.finetuning.teacher import load_teacher
from orchestrator.finetuning.trial import KEPT, ModelSource, load_with_head
from orchestrator.lease import LEASE
from orchestrator.node_copy import folder_here
from orchestrator.runs import CONFIG
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict

DEFAULT_LENGTH = 128
"""Tokens of an input where the settings do not say."""


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
) -> int:
    """Load the model once with each head that is needed; returns the tokens of an input.

    Raises:
        InvalidInput: if it has no such head, fewer positions than `finetune.max_length`, or a
            tokenizer that cannot pad or make windows.
    """
    where = str(folder_here(store, source.place))
    length = settings.max_length or DEFAULT_LENGTH
    for task in {(task.kind, task.num_labels): task for task in tasks}.values():
        with _by_name(source, where):
            loaded, tokenizer = load_with_head(where, task, pooling=settings.pooling)
        check_tokenizer(source.name, loaded, tokenizer, task)
        if settings.max_length is None:
            length = min(length, positions_of(loaded) or length)
        check_length(length, loaded)
        if task.kind == "spans":
            spans = span_settings(settings, length)
            try:
                check_windows(
                    tokenizer,
                    max_length=length,
                    stride=spans.stride,
                    max_question_tokens=spans.max_question_tokens,
                )
            except InvalidInput as error:
                raise InvalidInput(
                    f"finetune.max_length={length} leaves no room for windows of a context: "
                    f"{error} (finetune.max_length, finetune.stride, finetune.max_question_tokens)"
                ) from None
    return length


@contextmanager
def _by_name(source: ModelSource, where: str) -> Iterator[None]:
    """What is wrong with the copy is wrong with the model that the user named."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(str(error).replace(where, source.name)) from error


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


def refuse_foreign(store: RunStore) -> None:
    """A folder that holds something else than a run or fine-tunings is not written into.

    Raises:
        RunConflict: naming what is there.
    """
    ours = {LEASE, "rows", MODELS, KEPT, SUMMARY, SUBMISSIONS, "ray"}
    names = set(store.names(""))
    if names and not store.exists(CONFIG) and not names <= ours:
        raise RunConflict(
            f"the output folder must be new, empty, a run's or of earlier fine-tunings, but "
            f"{store.uri} holds {', '.join(sorted(names - ours)[:3])}: give another with --out"
        )
