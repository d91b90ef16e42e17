"""A model folder as one ONNX file, for onnxruntime and whatever else reads the format.

Beside the flow. The file takes batches and lengths of any size up to the model's positions, and is
written only after onnxruntime gave the model's own outputs on shapes other than the traced one.

B: sequences, T: tokens.
"""

import importlib.util
import inspect
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluators.downstream.finetuning import positions_of
from orchestrator.hugging_face_models import is_path, kind_of, load_pretrained
from supernet.errors import ExportDiffers, InvalidInput

TOLERANCE = 1e-4
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = {
    "masked_lm": ("logits",),
    "replaced_tokens": ("logits",),
    "sequence_classification": ("logits",),
    "question_answering": ("start_logits", "end_logits"),
    "features": ("last_hidden_state",),
}
_TRACED = (3, 5)


@dataclass(frozen=True)
class OnnxExport:
    """What was written: inputs are (B, T) integers; `longest`: the most tokens of a sequence."""

    path: Path
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    longest: int
    max_difference: float


def export_onnx(model: str, *, out: Path | None = None, kind: str | None = None) -> OnnxExport:
    """Write a model of a folder, or of a name on the Hugging Face hub, as ONNX.

    Args:
        out: the file; None: `model.onnx` in the model's folder. An older one is replaced.
        kind: one of `OUTPUTS`; None: what the model was saved as.

    Raises:
        InvalidInput: if a package is missing, or the model is none, has no such head, or cannot
            be expressed in ONNX.
        ExportDiffers: if onnxruntime's outputs are not within `TOLERANCE` of PyTorch's.
    """
    _check_packages()
    path = _file(model, out)
    kind = kind_of(model) if kind is None else kind
    loaded, tokenizer = load_pretrained(model, kind, new_head=kind == "features")
    traced = _Traced(loaded, _inputs(loaded), OUTPUTS[kind])
    longest = min(positions_of(loaded) or 512, tokenizer.model_max_length)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(traced, partial / path.name, model=model)
        difference = max_difference(traced, partial / path.name, longest=longest)
        if not difference <= TOLERANCE:
            raise ExportDiffers(
                f"onnxruntime must give the model's outputs within {TOLERANCE}, but for {model} "
                f"they differ by {difference:.2g}; nothing was written. Other versions of torch "
                f"and onnxruntime may help"
            )
        for file in sorted(partial.iterdir(), reverse=True):
            file.replace(path.parent / file.name)
    except OSError as error:
        raise InvalidInput(f"{path} must be writable, but: {_one_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return OnnxExport(path, kind, traced.inputs, traced.outputs, longest, difference)


class _Traced(nn.Module):
    """A model whose inputs and outputs are tensors in a fixed order."""

    def __init__(self, model: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.outputs = outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)), return_dict=True)
        return tuple(output[name] for name in self.outputs)

    def example(self, batch: int, length: int) -> tuple[torch.Tensor, ...]:
        """Inputs (B, T) each; the first of several sequences is padded to half its length."""
        config: Any = self.model.config
        pad = getattr(config, "pad_token_id", None) or 0
        draw = torch.Generator().manual_seed(batch * 10_000 + length)
        ids_BT = torch.randint(0, config.vocab_size, (batch, length), generator=draw)
        ids_BT[ids_BT == pad] = (pad + 1) % config.vocab_size
        mask_BT = torch.ones_like(ids_BT)
        if batch > 1:
            mask_BT[0, (length + 1) // 2 :] = 0
        named = {
            "input_ids": ids_BT.where(mask_BT.bool(), pad),
            "attention_mask": mask_BT,
            "token_type_ids": torch.randint(0, 2, (batch, length), generator=draw),
        }
        return tuple(named[name] for name in self.inputs)


def max_difference(traced: _Traced, file: Path, *, longest: int) -> float:
    """The largest absolute difference of onnxruntime's outputs to PyTorch's; NaN if one is.

    Raises:
        ExportDiffers: if onnxruntime cannot run the file on one of the shapes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    differences = []
    for batch, length in _shapes(longest):
        tensors = traced.example(batch, length)
        with torch.no_grad():
            expected = traced(*tensors)
        feed = {name: tensor.numpy() for name, tensor in zip(traced.inputs, tensors, strict=True)}
        try:
            found = session.run(list(traced.outputs), feed)
        except Exception as error:
            raise ExportDiffers(
                f"onnxruntime must run the model on {batch} sequences of {length} tokens, but: "
                f"{_one_line(error)}"
            ) from error
        differences += [
            (torch.from_numpy(ours) - theirs).abs().max()
            for ours, theirs in zip(found, expected, strict=True)
        ]
    return float(torch.stack(differences).max())


def _shapes(longest: int) -> list[tuple[int, int]]:
    """Batches and lengths to compare on: alone and padded, from two tokens to the longest."""
    lengths = sorted({2, 7, longest // 2, longest} - {_TRACED[1], 0, 1})
    return [(batch, length) for length in lengths if length <= longest for batch in (1, 4)]


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InvalidInput(
            f"ONNX needs {', '.join(PACKAGES)}, but {', '.join(missing)} cannot be imported; "
            f"pip install 'magic-nas[onnx]'"
        )


def _file(model: str, out: Path | None) -> Path:
    place = Path(model)
    if not place.is_dir() and (place.exists() or is_path(model)):
        raise InvalidInput(f"a model is a folder or a name on the hub, but {model} is no folder")
    if out is None and not Path(model).is_dir():
        raise InvalidInput(
            f"the ONNX file is written into the model's folder unless --out names it, but {model} "
            f"is no folder here; add --out FILE.onnx"
        )
    path = Path(model) / "model.onnx" if out is None else out
    if path.is_dir():
        raise InvalidInput(f"--out names a file, but {path} is a folder; add a name to it")
    return path


def _inputs(model: Any) -> tuple[str, ...]:
    taken = inspect.signature(model.forward).parameters
    has_types = "token_type_ids" in taken and getattr(model.config, "type_vocab_size", 2) > 1
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if has_types else ()))
    absent = [name for name in names if name not in taken]
    if absent:
        raise InvalidInput(f"ONNX is written of encoders of text, but the model has no {absent[0]}")
    return names


def _write(traced: _Traced, file: Path, *, model: str) -> None:
    axes = {0: "batch", 1: "length"}
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                traced,
                traced.example(*_TRACED),
                dynamo=True,
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                dynamic_shapes=(tuple(axes for _ in traced.inputs),),
                verbose=False,
            )
            assert program is not None
            program.save(str(file))
    except torch.onnx.errors.OnnxExporterError as error:
        raise InvalidInput(
            f"ONNX must be able to express every operator of {model} at any batch and length, but: "
            f"{_one_line(error)}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on packages and on its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
