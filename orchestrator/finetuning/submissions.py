"""GLUE's submission files, from the predictions that lie beside the kept fine-tuned models."""

import hashlib
import json
import tempfile
from collections.abc import Mapping

from evaluators.downstream.heads import TEST_PREDICTIONS
from evaluators.downstream.submission import write_submission
from evaluators.downstream.tasks import TASKS
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning.trial import Job
from orchestrator.store import RunStore

FOLDER = "glue_test"
_CHOSEN = frozenset({"learning_rates", "epochs", "seeds", "selection_seeds", "keep_models"})
"""Settings that a study chooses by, which a task's file may have of any call."""


def write_submissions(
    store: RunStore, chosen: Mapping[str, Job], settings: FinetuneSettings
) -> None:
    """Write the files of every task whose test split was there and whose model was kept.

    Those of one model and recipe lie together, in a folder that says which: `settings.json`.
    """
    recipe = settings.model_dump(mode="json", exclude=set(_CHOSEN))
    for name, job in chosen.items():
        file = f"{job.folder}/{TEST_PREDICTIONS}.json"
        if not TASKS[name].submissions or not store.exists(file):
            continue
        text = json.dumps({"model": job.model.name, **recipe}, indent=2)
        digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]
        place = f"{FOLDER}/{job.model.digest}-{digest}"
        with tempfile.TemporaryDirectory() as folder:
            for split, values in store.read_json(file)["predictions"].items():
                written = write_submission(TASKS[name], folder, values, split=split)
                store.write_bytes(f"{place}/{written.name}", written.read_bytes())
                store.write_bytes(f"{place}/settings.json", text.encode())
