"""`search.finetune`: its data, read once by the driver, and the scorer that every evaluator makes.

Evaluators get the examples themselves: the files are on the driver's machine alone.
"""

import hashlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.config import Config, ShortFinetuneSettings
from orchestrator.runs import Run
from supernet.errors import InvalidInput, RunConflict

if TYPE_CHECKING:
    from evaluators.downstream.heads import TaskData
    from evaluators.evaluator import Evaluator
    from evaluators.finetuned_score import FinetunedScorer

SCORE = "finetuned_score"
RECORD = "search/finetune.json"
"""Which examples the run's rows are of."""


def check_short_finetuning(config: Config, *, own: bool) -> None:
    """Check what `search.finetune` says; no file is read.

    Args:
        own: whether a user's function scores.

    Raises:
        InvalidInput: if there is no such task, or the inputs are longer than the super-net's.
    """
    from evaluators.downstream.tasks import TASKS, task_named

    settings = config.search.finetune
    if settings is None:
        return
    if own:
        raise InvalidInput(
            "search.finetune fine-tunes children from a super-net's weights, but search.scorer "
            "scores in their place: leave one of the two out"
        )
    if task_named(settings.task).kind == "spans":
        sentences = ", ".join(name for name, task in TASKS.items() if task.kind != "spans")
        raise InvalidInput(
            f"search.finetune.task must be one of {sentences}, but got {settings.task!r}: spans "
            f"need longer trainings; fine-tune the children of your choice with magic-nas finetune"
        )
    length = config.data.sequence_length
    if settings.max_length is not None and settings.max_length > length:
        raise InvalidInput(
            f"search.finetune.max_length must be at most data.sequence_length, {length}, for the "
            f"super-net knows no more positions, but got {settings.max_length}: lower it, or leave "
            f"it out"
        )


def read_examples(config: Config) -> "TaskData | None":
    """The seeded subsets of train and dev; None without `search.finetune`.

    Raises:
        InvalidInput: naming the file and line that breaks the format.
    """
    settings = config.search.finetune
    if settings is None:
        return None
    from evaluators.downstream.heads import TaskData
    from evaluators.downstream.reading import read_task
    from evaluators.downstream.tasks import task_named

    read = read_task(task_named(settings.task), settings.data)
    return TaskData(
        read.task,
        subset(read.train, settings.train_examples, seed=f"train:{config.seed}"),
        {"dev": subset(read.dev["dev"], settings.dev_examples, seed=f"dev:{config.seed}")},
        {},
    )


def subset(examples: Sequence[Any], count: int, *, seed: str) -> list[Any]:
    """So many of them, in their order; all, if there are no more."""
    if len(examples) <= count:
        return list(examples)
    chosen = sorted(random.Random(seed).sample(range(len(examples)), count))
    return [examples[place] for place in chosen]


def check_same_examples(run: Run, examples: "TaskData") -> None:
    """Record what the run's children are fine-tuned on, or compare with what they were before.

    Raises:
        RunConflict: if the files have changed since.
    """
    digest = hashlib.sha256(repr((examples.train, examples.dev)).encode()).hexdigest()[:16]
    now = {"task": examples.task.name, "examples": digest}
    if not run.store.exists(RECORD):
        run.store.write_json(RECORD, now)
    elif run.store.read_json(RECORD) != now:
        raise RunConflict(
            f"a search fine-tunes every child on the same examples, but those of "
            f"{now['task']} have changed since {run.store.uri} was begun: put the files back, or "
            f"give another output folder"
        )


def with_finetuning(
    run: Run, inherited: "Evaluator", examples: "TaskData | None"
) -> "Evaluator | FinetunedScorer":
    """The evaluator, with short fine-tuning around it where there are examples."""
    settings = run.config.search.finetune
    if settings is None or examples is None:
        return inherited
    from evaluators.finetuned_score import FinetunedScorer
    from orchestrator.export import child_tokenizer

    tokenizer = child_tokenizer(run.data_folder / "tokenizer", run.shape)
    return FinetunedScorer(inherited, examples, tokenizer, short_finetuning(run, settings))


def short_finetuning(run: Run, settings: ShortFinetuneSettings) -> Any:
    """The settings as the scorer takes them."""
    from evaluators.downstream.finetuning import Recipe
    from evaluators.finetuned_score import ShortFinetuning

    return ShortFinetuning(
        recipe=Recipe(
            learning_rate=settings.learning_rate,
            epochs=1.0,
            seed=run.config.seed,
            batch_size=settings.batch_size,
            max_steps=settings.steps,
        ),
        seeds=settings.seeds,
        max_length=settings.max_length or run.shape.max_length,
        pooling=settings.pooling,
    )
