"""The export stage: the retrained best child as a Hugging Face folder, with its model card."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.export import CARD, ModelCard, export_model, model_card, replace_folder
from orchestrator.finetuning.digest import digest_of
from orchestrator.finetuning.summary import summary_of
from orchestrator.finetuning.table import Line, lines
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.runinfo import read_info
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint
from supernet.errors import InvalidInput
from supernet.manifest import MANIFEST, rewrite_file
from supernet.model import SuperNet
from supernet.space import Architecture

logger = logging.getLogger(__name__)


def export_best(run: Run) -> None:
    """Write `export/` from the last checkpoint of the retrained best child.

    Raises:
        InvalidInput: if that checkpoint is gone.
    """
    card = _card(run)
    architecture = card.architecture
    checkpoint = latest_checkpoint(run.store, "retrained/best", optimizer=False)
    if checkpoint is None:
        raise InvalidInput(f"{run.store.uri}/retrained/best has no whole checkpoint")
    model = SuperNet(run.space.restricted_to(architecture), run.shape)
    model.load_state_dict(dict(checkpoint.weights))
    with folder_to_fill(run.store, "export") as folder:
        export_model(
            model,
            architecture=architecture,
            tokenizer_folder=run.data_folder / "tokenizer",
            folder=folder,
            card=model_card(card),
        )
        rows = _finetuned(run, folder)
        if rows:
            rewrite_file(folder, CARD, model_card(replace(card, finetuned=rows)))


def refresh_card(run: Run) -> None:
    """Give the export's card the fine-tunings that it has by now; nothing without an export.

    A damaged one is left as it is, with a warning: what it is good for is not what is asked.
    """
    if not run.store.exists(f"export/{MANIFEST}"):
        return
    try:
        here = folder_here(run.store, "export")
        rows = _finetuned(run, here)
        text = model_card(replace(_card(run), finetuned=rows))
        if (here / CARD).read_text(encoding="utf-8") == text:
            return
    except (InvalidInput, KeyError) as error:
        logger.warning("the export's %s does not get the fine-tunings: %s", CARD, error)
        return
    with folder_to_fill(run.store, "export") as folder:
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(here, partial)
        rewrite_file(partial, CARD, text)
        replace_folder(folder, partial)


def _finetuned(run: Run, export: Path) -> tuple[Line, ...]:
    """Of the model in that folder and no other."""
    digest = digest_of(export)
    results = summary_of(run.store)["results"]
    return tuple(lines({"results": [r for r in results if r["model_digest"] == digest]}))


def _card(run: Run) -> ModelCard:
    info = read_info(run.store)
    results: dict[str, dict[str, Any]] = {model["name"]: model for model in info["models"]}
    best = results["best"]
    return ModelCard(
        run=run.store.name,
        architecture=Architecture.parse(best["architecture"]),
        num_params=best["num_params"],
        flops=best["flops"],
        test_loss_nats=best["test_loss_nats"],
        baseline_loss_nats=results["baseline"]["test_loss_nats"],
        baseline_num_params=results["baseline"]["num_params"],
        unigram_nats=info["unigram_nats"]["test"],
        data=run.summary.source,
        generator_loss_nats=best.get("generator_loss_nats"),
        baseline_generator_loss_nats=results["baseline"].get("generator_loss_nats"),
    )


def export_folder(run: str | Path) -> Path:
    """A run's export as a folder on this machine, for libraries that load it by path.

    Raises:
        InvalidInput: if the run has none, or a file of it differs from its manifest.
        StorageFailed: if it cannot be downloaded.
    """
    store = RunStore(run)
    if not store.exists(f"export/{MANIFEST}"):
        raise InvalidInput(
            f"{store.uri} must hold an export, but has none that is whole: run 'magic-nas export'"
        )
    return folder_here(store, "export")
