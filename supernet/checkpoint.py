"""Checkpoints: weights and optimiser state, whole per parameter, as safetensors.

`<folder>/step-00000200/` holds `weights.safetensors`, `optimizer.safetensors` and, written last,
`manifest.json` with the sha256 of both: a checkpoint without a manifest was never finished.
Whole parameters fit any number of workers and any ZeRO stage; nothing is unpickled.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from supernet.errors import CheckpointDamaged, InvalidInput

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]


class Files(Protocol):
    """What checkpoints ask of a run's storage; `orchestrator.store.RunStore` has it."""

    def names(self, folder: str) -> list[str]: ...
    def exists(self, name: str) -> bool: ...
    def read_bytes(self, name: str) -> bytes: ...
    def write_bytes(self, name: str, data: bytes) -> None: ...
    def read_json(self, name: str) -> Any: ...
    def write_json(self, name: str, value: Any) -> None: ...
    def delete(self, name: str) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole.

    `weights` is by parameter name; `optimizer` by "<state>/<parameter name>".
    """

    name: str
    step: int
    weights: Tensors
    optimizer: Tensors
    extra: Mapping[str, Any]
    """What else its manifest says."""


def save_checkpoint(
    files: Files,
    folder: str,
    *,
    step: int,
    weights: Tensors,
    optimizer: Tensors,
    extra: Mapping[str, Any],
    keep: int,
) -> str:
    """Write the checkpoint of a step, then remove all but it and the `keep` - 1 before; its name.

    Unfinished ones go, and later ones: training fell back from them, for they are damaged.

    Raises:
        StorageFailed: if the storage refuses; the checkpoints before are intact.
    """
    name = f"{folder}/step-{step:08d}"
    files.delete(f"{name}/{MANIFEST}")
    digests = {}
    for file, tensors in ((WEIGHTS, weights), (OPTIMIZER, optimizer)):
        data = save_tensors({key: tensor.contiguous() for key, tensor in tensors.items()})
        digests[file] = hashlib.sha256(data).hexdigest()
        files.write_bytes(f"{name}/{file}", data)
    files.write_json(f"{name}/{MANIFEST}", {"step": step, "sha256": digests, **extra})
    folders = _folders(files, folder)
    finished = [found for found in folders if files.exists(f"{found}/{MANIFEST}")]
    kept = [found for found in finished if found <= name][-keep:]
    for old in folders:
        if old not in kept:
            files.delete(old)
    return name


def load_checkpoint(files: Files, name: str, *, optimizer: bool = True) -> Checkpoint:
    """Read one checkpoint, named as `save_checkpoint` named it.

    Raises:
        CheckpointDamaged: if a file is missing or differs from its manifest.
    """
    if not files.exists(f"{name}/{MANIFEST}"):
        raise CheckpointDamaged(f"checkpoint {name} has no {MANIFEST}: it was never finished")
    try:
        manifest = files.read_json(f"{name}/{MANIFEST}")
        step, digests = int(manifest.pop("step")), dict(manifest.pop("sha256"))
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise CheckpointDamaged(f"checkpoint {name}: {MANIFEST} is damaged: {error}") from None
    weights = _read_tensors(files, name, WEIGHTS, digests)
    state = _read_tensors(files, name, OPTIMIZER, digests) if optimizer else {}
    return Checkpoint(name, step, weights, state, manifest)


def latest_checkpoint(files: Files, folder: str, *, optimizer: bool = True) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None; says which damaged ones it passed over."""
    for name in reversed(_folders(files, folder)):
        try:
            return load_checkpoint(files, name, optimizer=optimizer)
        except CheckpointDamaged as error:
            logger.warning("%s; falling back to the checkpoint before it", error)
    return None


def _folders(files: Files, folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in files.names(folder) if name.startswith("step-")]


def _read_tensors(
    files: Files, name: str, file: str, digests: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    try:
        data = files.read_bytes(f"{name}/{file}")
    except InvalidInput as error:
        raise CheckpointDamaged(f"checkpoint {name}: {error}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != digests.get(file):
        raise CheckpointDamaged(
            f"checkpoint {name}: {file} ({len(data)} bytes) must have the sha256 of its manifest, "
            f"{digests.get(file)}, but has {found}: it is truncated or damaged"
        )
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise CheckpointDamaged(f"checkpoint {name}: {file} is no safetensors: {error}") from None


def version_of(files: Files, name: str) -> str:
    """A name for a checkpoint's weights that two different ones do not share."""
    manifest = files.read_json(f"{name}/{MANIFEST}")
    return f"step-{manifest['step']}-{manifest['sha256'][WEIGHTS][:12]}"
