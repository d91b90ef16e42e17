"""Models by folder or hub name, as fine-tuning and ONNX take them; no code of theirs is run.

Exports of magic-nas, and what was fine-tuned from them, are built from magic-nas's own classes;
anything else from the classes that transformers itself has. Beside the flow.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import cached_file

from orchestrator.operator_source import custom_sources
from orchestrator.runs import CONFIG
from supernet import modeling_magic_nas as ours
from supernet.configuration_magic_nas import MagicNasConfig
from supernet.errors import InvalidInput
from supernet.operators import operator_class

_LOADING_ERRORS = (
    *(OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError),
    *(SafetensorError, HFValidationError, StrictDataclassError),
)

_FILES = ["*.json", "*.txt", "*.model"]
_WEIGHTS = ["*.safetensors"]
_OLD_WEIGHTS = ["pytorch_model*.bin"]
"""Of a model on the hub, in its root: the last are taken where there are no safetensors."""


@dataclass(frozen=True)
class Kind:
    """What a model is for: transformers' classes of it by configuration, and ours."""

    auto_class: Any
    known: Any
    own_class: type[Any]
    suffix: str


KINDS = {
    "masked_lm": Kind(
        transformers.AutoModelForMaskedLM,
        transformers.MODEL_FOR_MASKED_LM_MAPPING,
        ours.MagicNasForMaskedLM,
        "ForMaskedLM",
    ),
    "replaced_tokens": Kind(
        transformers.AutoModelForPreTraining,
        {transformers.ElectraConfig: transformers.ElectraForPreTraining},
        ours.MagicNasForPreTraining,
        "ForPreTraining",
    ),
    "sequence_classification": Kind(
        transformers.AutoModelForSequenceClassification,
        transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        ours.MagicNasForSequenceClassification,
        "ForSequenceClassification",
    ),
    "question_answering": Kind(
        transformers.AutoModelForQuestionAnswering,
        transformers.MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        ours.MagicNasForQuestionAnswering,
        "ForQuestionAnswering",
    ),
    "features": Kind(
        transformers.AutoModel, transformers.MODEL_MAPPING, ours.MagicNasModel, "Model"
    ),
}


def load_pretrained(
    model: str,
    kind: str,
    *,
    num_labels: int | None = None,
    new_head: bool = True,
    **config_overrides: Any,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in float32, for evaluation, with its tokenizer.

    Args:
        model: a folder, or a name on the Hugging Face hub.
        kind: one of `KINDS`.
        num_labels: of the head; None: the model's own.
        new_head: whether a head that the model lacks, or has for other labels, begins anew.
        config_overrides: keys of the model's configuration, such as `problem_type`.

    Raises:
        InvalidInput: if there is no such model, it cannot be loaded without running its code, it
            has no such head, weights or tokenizer, or the hub cannot be reached.
    """
    _check_kind(kind)
    config = _config(model, num_labels, config_overrides)
    model_class = _model_class(model, kind, config)
    with _as_invalid_input(model, "its weights"):
        loaded, info = model_class.from_pretrained(
            model,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _check_weights(model, kind, loaded, info, new_head=new_head)
    return loaded, load_tokenizer(model, config=config)


def meta_model(model: str, kind: str) -> PreTrainedModel:
    """The model without memory or weights, from its configuration alone.

    Raises:
        InvalidInput: if there is no such model, or transformers has no such class of it.
    """
    _check_kind(kind)
    config = _config(model, None, {})
    with _as_invalid_input(model, "its configuration"), torch.device("meta"):
        built: PreTrainedModel = _model_class(model, kind, config)(config)
    return built


def load_tokenizer(model: str, *, config: Any = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or a name on the hub, whose configuration may be known.

    Raises:
        InvalidInput: if it has none, or one with more tokens than the configuration has.
    """
    with _as_invalid_input(model, "its tokenizer"):
        tokenizer: Any = AutoTokenizer.from_pretrained(
            model, config=config, trust_remote_code=False
        )
    ids = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    if not ids:
        raise InvalidInput(
            f"a model has a tokenizer beside it, but {model} has none; save it there with "
            f"tokenizer.save_pretrained"
        )
    vocab_size = max(ids) + 1 if config is None else getattr(config, "vocab_size", None)
    if vocab_size is None:
        raise InvalidInput(
            f"a model has a vocabulary, but the configuration of {model} ({config.model_type}) has "
            f"no vocab_size: take another model"
        )
    if max(ids) >= vocab_size:
        raise InvalidInput(
            f"a tokenizer's ids must be below the model's vocab_size, but in {model} they go up to "
            f"{max(ids)} and vocab_size is {vocab_size}; resize the model's token embeddings"
        )
    return tokenizer


@contextmanager
def hub_files(name: str) -> Iterator[Path]:
    """A folder of links to the files of a model on the Hugging Face hub, in its cache here.

    Raises:
        InvalidInput: if there is no such model, or the hub cannot be reached.
    """
    _config_dict(name)
    files: list[Path] = []
    for patterns in (_FILES, _WEIGHTS, _OLD_WEIGHTS):
        with _as_invalid_input(name, "its files"):
            cached = snapshot_download(name, allow_patterns=patterns, ignore_patterns="*/*")
        found = [file for pattern in patterns for file in Path(cached).glob(pattern)]
        files += found
        if found and patterns is _WEIGHTS:
            break
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            Path(folder, file.name).symlink_to(file.resolve())
        yield Path(folder)


def kind_of(model: str) -> str:
    """What a model was saved as, by its configuration's `architectures`.

    Raises:
        InvalidInput: if that is none of `KINDS`, or there is no such model.
    """
    names = _config_dict(model).get("architectures") or []
    for kind, described in KINDS.items():
        if names and names[0].endswith(described.suffix) and "LMHead" not in names[0]:
            return kind
    raise InvalidInput(
        f"{model} was saved as {names or 'nothing that its configuration names'}; say what it is "
        f"for: {', '.join(KINDS)}"
    )


def is_own(model: str) -> bool:
    """Whether it is an export of magic-nas, or was fine-tuned from one.

    Raises:
        InvalidInput: if there is no such model.
    """
    return bool(_config_dict(model).get("model_type") == MagicNasConfig.model_type)


def save_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Write model and tokenizer; where the model is ours, with the code that loads it elsewhere.

    Raises:
        InvalidInput: if a user's operator in it cannot be loaded from its own file alone.
    """
    sources = {}
    if isinstance(model, ours.MagicNasPreTrainedModel):
        sources = custom_sources(model.base_model.chain, _operator_kinds(model.config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InvalidInput(f"a model is loaded as one of {', '.join(KINDS)}, but got {kind!r}")


def _config_dict(model: str) -> dict[str, Any]:
    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").is_file():
        hint = f"; name {folder}/export" if (folder / "export/config.json").is_file() else ""
        if not hint and (folder / CONFIG).is_file():
            hint = f"; it is a run's, whose model 'magic-nas export --out {model}' writes"
        raise InvalidInput(
            f"a model's folder holds config.json, weights and a tokenizer, but {model} has no "
            f"config.json{hint}"
        )
    if folder.is_file() or (not folder.is_dir() and is_path(model)):
        raise InvalidInput(f"a model is a folder or a name on the hub, but {model} is no folder")
    with _as_invalid_input(model, "its configuration"):
        path = cached_file(model, "config.json")
        config: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
        config.get("model_type")
    return config


def is_path(model: str) -> bool:
    """Whether it can be no name on the hub."""
    return model.startswith(("/", "./", "../", "~")) or model.count("/") > 1


def _config(model: str, num_labels: int | None, overrides: dict[str, Any]) -> Any:
    model_type = _config_dict(model).get("model_type")
    is_ours = model_type == MagicNasConfig.model_type
    if not is_ours and model_type not in transformers.CONFIG_MAPPING:
        raise InvalidInput(
            f"a model is of a type that transformers or magic-nas has the code of, for code that "
            f"comes with one is not run, but {model} is {model_type!r}; take another model"
        )
    with _as_invalid_input(model, "its configuration"):
        if is_ours:
            config = MagicNasConfig.from_pretrained(model)
        else:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    unknown = [key for key in overrides if not hasattr(config, key)]
    if unknown:
        raise InvalidInput(
            f"the configuration of {model} ({config.model_type}) has no {', '.join(unknown)}"
        )
    if num_labels is not None and num_labels != config.num_labels:
        config.problem_type = None
        config.num_labels = num_labels
    for key, value in overrides.items():
        setattr(config, key, value)
    if is_ours:
        _check_operators(model, config)
    return config


def _operator_kinds(config: MagicNasConfig) -> set[str]:
    return {config.operators[name]["kind"] for name in config.layers}


def _check_operators(model: str, config: MagicNasConfig) -> None:
    """Refuse operators that are neither ours nor can be imported: their copies are not run."""
    for kind in sorted(_operator_kinds(config)):
        try:
            operator_class(kind)
        except ValueError as error:
            raise InvalidInput(
                f"{model} has the operator {kind!r}, whose copy beside the weights is not run, and "
                f"the operator itself cannot be imported: {error}; put the folder of its module "
                f"on PYTHONPATH"
            ) from None


def _model_class(model: str, kind: str, config: Any) -> Any:
    described = KINDS[kind]
    if isinstance(config, MagicNasConfig):
        return described.own_class
    if type(config) not in described.known:
        raise InvalidInput(
            f"{model} must be of a type that transformers has a class {described.suffix!r} for, "
            f"but it is {config.model_type!r}; take another model, or another use of it"
        )
    return described.known[type(config)]


def _check_weights(
    model: str, kind: str, loaded: Any, info: dict[str, Any], *, new_head: bool
) -> None:
    """Encoders come whole, but for BERT's pooler, which belongs to the head; heads may begin."""
    absent = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    if new_head:
        prefix = "" if kind == "features" else f"{loaded.base_model_prefix}."
        absent = {key for key in absent if key.startswith(prefix) and "pooler." not in key}
    if absent:
        raise InvalidInput(
            f"the weights in {model} must be those of {type(loaded).__name__}, but {len(absent)} "
            f"tensors are missing or of another size, such as {min(absent)!r}"
            + ("" if new_head else "; fine-tune the model for this use first")
        )


@contextmanager
def _as_invalid_input(model: str, what: str) -> Iterator[None]:
    """What transformers raises about a model that it cannot load, on one line."""
    try:
        yield
    except InvalidInput:
        raise
    except _LOADING_ERRORS as err:
        message = " ".join(f"{type(err).__name__}: {err}".split())
        raise InvalidInput(
            f"{model} must be a model's folder, or a name on the Hugging Face hub that can be "
            f"reached, but {what} cannot be loaded: {message[:400]}"
        ) from err
