"""The export: a child model as a Hugging Face folder that needs torch and transformers alone.

Last in the flow. The folder carries copies of the files that define the network within
magic-nas; nothing is defined twice.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import AutoTokenizer

import supernet
from orchestrator.finetuning.table import Line
from orchestrator.leaderboard import human
from orchestrator.operator_source import custom_sources
from supernet.child_model import child_config
from supernet.configuration_magic_nas import MagicNasConfig
from supernet.errors import InvalidInput
from supernet.manifest import write_manifest
from supernet.model import SuperNet, TextShape
from supernet.modeling_magic_nas import MagicNasForMaskedLM, MagicNasForPreTraining
from supernet.space import Architecture

COPIED = (
    "configuration_magic_nas.py",
    "modeling_magic_nas.py",
    "operators.py",
    "text.py",
)
CARD = "README.md"
AUTO_MAP = {
    "AutoConfig": "configuration_magic_nas.MagicNasConfig",
    "AutoModel": "modeling_magic_nas.MagicNasModel",
    "AutoModelForSequenceClassification": "modeling_magic_nas.MagicNasForSequenceClassification",
    "AutoModelForQuestionAnswering": "modeling_magic_nas.MagicNasForQuestionAnswering",
}
_PRETRAINED: dict[str, tuple[str, type[MagicNasForMaskedLM | MagicNasForPreTraining]]] = {
    "masked_lm": ("AutoModelForMaskedLM", MagicNasForMaskedLM),
    "replaced_tokens": ("AutoModelForPreTraining", MagicNasForPreTraining),
}
"""What the head of each objective is loaded by, and its class."""


def export_model(
    model: SuperNet,
    *,
    architecture: Architecture,
    tokenizer_folder: Path,
    folder: Path,
    card: str,
) -> None:
    """Write a folder that `AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)`
    loads, or `AutoModelForPreTraining` where replaced tokens were learnt; an older export there is
    replaced, once the new one is whole.

    Args:
        model: the super-net of the space that holds `architecture` alone.
        tokenizer_folder: where the tokenizer was saved.
        card: the text of README.md, as from `model_card`.

    Raises:
        InvalidInput: if the model holds more than the child, a user's operator cannot be
            exported, or `folder` holds something else than an export.
    """
    _check_replaceable(folder)
    exported = to_hugging_face(model, architecture)
    kinds = {spec.kind for spec in model.space.operators.values()}
    sources = custom_sources(model.chain, kinds)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        exported.save_pretrained(partial)
        child_tokenizer(tokenizer_folder, model.shape).save_pretrained(str(partial))
        _write_code(partial, sources)
        (partial / CARD).write_text(card, encoding="utf-8")
        write_manifest(partial)
        replace_folder(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def to_hugging_face(
    model: SuperNet, architecture: Architecture
) -> MagicNasForMaskedLM | MagicNasForPreTraining:
    """The child as a model of transformers that shares the super-net's tensors.

    Its head is that of what it learnt; a generator stays behind.

    Raises:
        InvalidInput: if the model holds more than the child.
    """
    if model.space.layers != tuple((name,) for name in architecture.operators):
        raise InvalidInput(
            f"an export holds one operator per layer, those of '{architecture}', but the model "
            f"has {[list(names) for names in model.space.layers]}; build it from "
            f"space.restricted_to(architecture)"
        )
    _, kind = _PRETRAINED[model.shape.objective]
    exported = kind(_configuration(model, architecture))
    exported.load_state_dict(
        {
            name if name.startswith("head.") else f"magic_nas.{name}": tensor
            for name, tensor in model.state_dict().items()
            if not name.startswith("generator.")
        },
        assign=True,
    )
    exported.eval()
    return exported


def _configuration(model: SuperNet, architecture: Architecture) -> MagicNasConfig:
    auto_class, kind = _PRETRAINED[model.shape.objective]
    auto_map = {**AUTO_MAP, auto_class: f"modeling_magic_nas.{kind.__name__}"}
    return child_config(model.space, model.shape, architecture, auto_map=auto_map)


def child_tokenizer(source: Path, shape: TextShape) -> Any:
    """The run's tokenizer, with token types for pairs of texts, as BERT's.

    Without them where the model does not tell types apart.
    """
    types = ["token_type_ids"] if shape.type_vocab_size > 1 else []
    tokenizer: Any = AutoTokenizer.from_pretrained(
        str(source),
        trust_remote_code=False,
        model_input_names=["input_ids", *types, "attention_mask"],
    )
    tokenizer.model_max_length = shape.max_length
    return tokenizer


def _write_code(folder: Path, sources: dict[str, str]) -> None:
    for name in COPIED:
        shutil.copyfile(Path(*supernet.__path__) / name, folder / name)
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / COPIED[0]).exists()):
        raise InvalidInput(
            f"an export replaces an older export or an empty folder, but {folder} holds something "
            f"else; name another folder"
        )


def replace_folder(folder: Path, partial: Path) -> None:
    """Put a folder that is whole in the place of one of that name beside it, if there is one."""
    replaced = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)


@dataclass(frozen=True)
class ModelCard:
    """The figures that a model card gives; losses are means over the test targets.

    For replaced tokens the generators' losses are what unigrams are compared with.
    """

    run: str
    architecture: Architecture
    num_params: int
    flops: int
    test_loss_nats: float
    baseline_loss_nats: float
    baseline_num_params: int
    unigram_nats: float
    data: str
    generator_loss_nats: float | None = None
    baseline_generator_loss_nats: float | None = None
    finetuned: tuple[Line, ...] = ()


def model_card(card: ModelCard) -> str:
    """README.md of an export, with the front matter that the Hugging Face hub reads."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["human"] = human
    return environment.get_template("model_card.md.j2").render(card=card)
