"""GLUE's submission files, from the predictions that lie beside the kept fine-tuned models."""

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
    """Write the files of every task whose test split was there and whose model was kept.

    Those of one model lie together, in `glue_test/<digest of the model>`.
    """
    for name, job in chosen.items():
        file = f"{job.folder}/test_predictions.json"
        if not tasks[name].submissions or not store.exists(file):
            continue
        model = job.model.digest if job.pretrained else f"{job.model.digest}-random"
        with tempfile.TemporaryDirectory() as folder:
            for split, values in store.read_json(file).items():
                written = write_submission(tasks[name], folder, values, split=split)
                store.write_bytes(f"{FOLDER}/{model}/{written.name}", written.read_bytes())
