"""What `MODEL` of `magic-nas finetune MODEL` means, and its files within reach of every node.

A folder of a model (an export, a fine-tuned model, any model of transformers), a run's folder (its
export), `RUN@NAME` with a retrained model of a run ("best", "baseline", "control_0") or a child
with inherited weights (its rank in the leaderboard, or its architecture), or a name on the hub.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from orchestrator.export import export_model
from orchestrator.finetuning.digest import BESIDE, digest_of
from orchestrator.finetuning.trial import ModelSource
from orchestrator.hugging_face_models import hub_files
from orchestrator.leaderboard import load_leaderboard
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.runs import CONFIG, SUPERNET, Run
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint
from supernet.errors import InvalidInput
from supernet.manifest import MANIFEST, write_manifest
from supernet.model import SuperNet
from supernet.space import Architecture

MODELS = "models"
"""Folder of the output folder that holds the models to fine-tune."""
_WEIGHTS = ("*.safetensors", "*.bin")


def model_source(store: RunStore, model: str) -> ModelSource:
    """Find the model and put a copy of it where the trials load it from.

    Args:
        store: the output folder.

    Raises:
        InvalidInput: if a run, a row of it or a folder is named that is not there, or the hub does
            not give the model.
    """
    run, at, child = model.rpartition("@")
    if at and _is_run(run):
        return _child(store, Run.open(run), child, name=model)
    if at and not Path(model).exists():
        raise InvalidInput(
            f"RUN@NAME names a model of a run, but {run} holds no {CONFIG}, as a run's folder does"
        )
    if _is_run(model):
        there = RunStore(model)
        if not there.exists(f"export/{MANIFEST}"):
            raise InvalidInput(
                f"the run {model} has no export to fine-tune yet: run 'magic-nas export --out "
                f"{model}', or name a child with inherited weights, as in '{model}@1'"
            )
        return _folder(store, folder_here(there, "export"), name=model)
    folder = Path(model)
    if folder.is_dir():
        return _folder(store, folder, name=model)
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise InvalidInput(
            f"MODEL must be a model's folder, a run's, RUN@NAME or a name on the Hugging Face hub, "
            f"but there is no folder {model}"
        )
    with hub_files(model) as files:
        return replace(_folder(store, files, name=model), from_hub=True)


def run_of(model: str) -> str | None:
    """The folder of the run that `MODEL` names, alone or before an "@"; None: it names no run's."""
    return next((place for place in (model, model.rpartition("@")[0]) if _is_run(place)), None)


def run_named(model: str) -> str:
    """As `run_of`.

    Raises:
        InvalidInput: if it names something else.
    """
    if (run := run_of(model)) is not None:
        return run
    raise InvalidInput(
        f"without --out a fine-tuning goes into the folder of the run that MODEL names, but "
        f"{model} is no run's: say where with --out"
    )


def _is_run(place: str) -> bool:
    return (
        bool(place) and ("://" in place or Path(place).is_dir()) and RunStore(place).exists(CONFIG)
    )


def _folder(store: RunStore, folder: Path, *, name: str) -> ModelSource:
    """A copy of a model's folder, named by its content."""
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            f"a model's folder holds a config.json, but {folder} does not: give a folder that "
            f"'magic-nas export' or save_pretrained wrote"
        )
    if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise InvalidInput(f"a model's folder holds its weights, but {folder} has no *.safetensors")
    digest = digest_of(folder)
    place = f"{MODELS}/{digest}"
    if not store.exists(f"{place}/{MANIFEST}"):
        with folder_to_fill(store, place) as copy:
            partial = copy.with_name(f".{copy.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(folder, partial, ignore=shutil.ignore_patterns(MANIFEST, *BESIDE))
            write_manifest(partial)
            shutil.rmtree(copy, ignore_errors=True)
            partial.rename(copy)
    return ModelSource(name, place, digest)


def _child(store: RunStore, run: Run, child: str, *, name: str) -> ModelSource:
    """Write a child of a run as a model's folder; the weights of its stem are shared with none."""
    architecture, weights = _weights(run, child)
    model = SuperNet(run.space.restricted_to(architecture), run.shape)
    wanted = model.state_dict()
    model.load_state_dict({key: weights[key] for key in wanted})
    with folder_to_fill(store, f"{MODELS}/child") as folder:
        export_model(
            model,
            architecture=architecture,
            tokenizer_folder=run.data_folder / "tokenizer",
            folder=folder,
            card=f"# {name}\n",
        )
    made = _folder(store, folder_here(store, f"{MODELS}/child"), name=name)
    store.delete(f"{MODELS}/child")
    return made


def _weights(run: Run, child: str) -> tuple[Architecture, Mapping[str, torch.Tensor]]:
    alone = f"retrained/{child}"
    if run.store.exists(f"{alone}/result.json"):
        architecture = Architecture.parse(
            str(run.store.read_json(f"{alone}/result.json")["architecture"])
        )
        folder = alone
    else:
        architecture = run.space.check(_of_leaderboard(run, child))
        folder = SUPERNET
    checkpoint = latest_checkpoint(run.store, folder, optimizer=False)
    if checkpoint is None:
        raise InvalidInput(f"{run.store.uri_of(folder)} has no whole checkpoint to fine-tune")
    return architecture, dict(checkpoint.weights)


def _of_leaderboard(run: Run, child: str) -> Architecture:
    if not child.isdecimal():
        try:
            return run.space.check(Architecture.parse(child))
        except InvalidInput as error:
            trained = [n for n in run.store.names("retrained")]
            raise InvalidInput(
                f"RUN@NAME names a retrained model ({', '.join(trained) or 'none yet'}), a rank of "
                f"the leaderboard or an architecture, but got {child!r} ({error})"
            ) from None
    frame = load_leaderboard(run.store.uri)
    if not 1 <= int(child) <= len(frame):
        raise InvalidInput(
            f"RUN@RANK must be from 1 to {len(frame)}, the children in the leaderboard of "
            f"{run.store.uri}, but got {child}"
        )
    return Architecture.parse(str(frame["architecture"].iloc[int(child) - 1]))
