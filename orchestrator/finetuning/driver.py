"""`magic-nas finetune`: a model on tasks, the recipe chosen on the dev split, several seeds.

Every fine-tuning is a row, by model, data and recipe, and is never done twice. Writes
`finetune.json`, each task's fine-tuned model of median score, and GLUE's submission files; in a
run's folder also its report and the card of its export.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evaluators.downstream.reading import read_task
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.checks import check_model, check_tasks, refuse_foreign
from orchestrator.finetuning.jobs import doing
from orchestrator.finetuning.sources import MODELS, model_source, run_named
from orchestrator.finetuning.study import Study
from orchestrator.finetuning.submissions import write_submissions
from orchestrator.finetuning.summary import SUMMARY, read_rows, summary_of
from orchestrator.finetuning.trial import quieten
from orchestrator.handover import refresh_card
from orchestrator.lease import hold_lease
from orchestrator.log_lines import lines_of
from orchestrator.report import write_report
from orchestrator.runs import CONFIG, Run
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, TrainingDiverged


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
        TrainingDiverged: if no seed of a task came to its end; figures and models of others are
            written before.
    """
    quieten()
    settings = settings or FinetuneSettings()
    wanted = check_tasks(tasks, settings)
    store = RunStore(run_named(model) if out is None else out)
    store.check_writable()
    refuse_foreign(store)
    run = Run.open(store.uri) if store.exists(CONFIG) else None
    read_rows(store)
    read = {task.name: read_task(task, data) for task in wanted}
    with _no_new_folder(store), hold_lease(store), lines_of(store.name, "finetune"):
        source = model_source(store, model)
        length = check_model(store, source, wanted, settings)
        study = Study(store, source, read, settings, max_length=length)
        with doing(store, address, local, study) as do:
            study.run(do)
        summary = summary_of(store)
        store.write_json(SUMMARY, summary)
        write_submissions(store, study.chosen, settings)
        if run is not None:
            refresh_card(run)
            write_report(store)
        if study.failed:
            raise TrainingDiverged("; ".join(study.failed))
        return summary


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
