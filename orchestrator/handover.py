"""The export stage: the retrained best child as a Hugging Face folder, with its model card."""

from pathlib import Path
from typing import Any

from orchestrator.export import ModelCard, export_model, model_card
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.runinfo import read_info
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint
from supernet.errors import InvalidInput
from supernet.manifest import MANIFEST
from supernet.model import SuperNet
from supernet.space import Architecture


def export_best(run: Run) -> None:
    """Write `export/` from the last checkpoint of the retrained best child.

    Raises:
        InvalidInput: if that checkpoint is gone.
    """
    info = read_info(run.store)
    results: dict[str, dict[str, Any]] = {model["name"]: model for model in info["models"]}
    best = results["best"]
    architecture = Architecture.parse(best["architecture"])
    checkpoint = latest_checkpoint(run.store, "retrained/best", optimizer=False)
    if checkpoint is None:
        raise InvalidInput(f"{run.store.uri}/retrained/best has no whole checkpoint")
    model = SuperNet(run.space.restricted_to(architecture), run.shape)
    model.load_state_dict(dict(checkpoint.weights))
    card = ModelCard(
        run=run.store.name,
        architecture=architecture,
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
    with folder_to_fill(run.store, "export") as folder:
        export_model(
            model,
            architecture=architecture,
            tokenizer_folder=run.data_folder / "tokenizer",
            folder=folder,
            card=model_card(card),
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
