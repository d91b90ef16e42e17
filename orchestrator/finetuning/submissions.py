"""GLUE's submission files, from the predictions that lie beside the kept fine-tuned models."""

import json
import tempfile
from collections.abc import Mapping

from evaluators.downstream.submission import write_submission
from evaluators.downstream.tasks import Task
from orchestrator.finetuning.trial import Job
from orchestrator.store import RunStore

FOLDER = "glue_test"


def write_submissions(
    store: RunStore, chosen: Mapping[str, Job], tasks: Mapping[str, Task]
) -> None:
    """Write the files of every task whose test split was there and whose model was kept."""
    for name, job in chosen.items():
        if tasks[name].kind == "spans" or not store.exists(f"{job.folder}/test_predictions.json"):
            continue
        predictions = json.loads(store.read_bytes(f"{job.folder}/test_predictions.json"))
        with tempfile.TemporaryDirectory() as folder:
            for split, values in predictions.items():
                file = write_submission(tasks[name], folder, values, split=split)
                store.write_bytes(f"{FOLDER}/{file.name}", file.read_bytes())
