"""Weights of BERT, RoBERTa and ELECTRA from transformers into a path of a super-net, and back.

Beside the flow: for comparisons with Transformers made by hand (`supernet.baselines`), and proof
that the path attention, feed-forward, attention, … is their encoder. Hidden states agree where
padding, if there is any, is on the right: RoBERTa counts positions from its padding on the left.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.operators import Attention, FeedForward, Identity
from supernet.space import Architecture

_POSITIONS = "stem.positions.weight"
_STEM = {
    "stem.tokens.weight": "embeddings.word_embeddings.weight",
    _POSITIONS: "embeddings.position_embeddings.weight",
    "stem.types.weight": "embeddings.token_type_embeddings.weight",
    "stem.norm": "embeddings.LayerNorm",
}
_PROJECTION = "embeddings_project"
_ATTENTION = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "norm": "attention.output.LayerNorm",
}
_FEED_FORWARD = {
    "inner": "intermediate.dense",
    "output": "output.dense",
    "norm": "output.LayerNorm",
}
_BERT_HEAD = {
    "transform": "cls.predictions.transform.dense",
    "norm": "cls.predictions.transform.LayerNorm",
    "bias": "cls.predictions.bias",
}
_ROBERTA_HEAD = {"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"}
_ELECTRA_HEAD = {
    "transform": "generator_predictions.dense",
    "norm": "generator_predictions.LayerNorm",
    "bias": "generator_lm_head.bias",
}
_DISCRIMINATOR_HEAD = {
    "dense": "discriminator_predictions.dense",
    "prediction": "discriminator_predictions.dense_prediction",
}
_HEADS = (
    ("masked_lm", "cls.predictions.bias", _BERT_HEAD),
    ("masked_lm", "lm_head.bias", _ROBERTA_HEAD),
    ("masked_lm", "generator_lm_head.bias", _ELECTRA_HEAD),
    ("replaced_tokens", "discriminator_predictions.dense.weight", _DISCRIMINATOR_HEAD),
)
"""What a head predicts, a tensor that tells it, and its names."""
FAMILIES = ("bert", "roberta", "electra")

Pair = tuple[str, nn.Parameter, str, nn.Parameter]
"""Our tensor and theirs, each behind its name."""


def load_hugging_face(model: SuperNet, architecture: Architecture, source: nn.Module) -> None:
    """Copy the weights of a model of transformers into one path of a super-net.

    The path alternates attention and feed-forward, a pair per layer of the model; identities may
    stand anywhere. Positions beyond the super-net's are left out, and so are poolers; the head
    stays as it is where the model has none.

    Args:
        source: a BertModel, BertForMaskedLM, RobertaModel, RobertaForMaskedLM, ElectraModel,
            ElectraForMaskedLM or ElectraForPreTraining.

    Raises:
        InvalidInput: if path and model differ in depth, sizes, heads, activation, epsilon or
            positions, or the model's head is of another objective than the super-net's.
    """
    _copy((theirs, ours) for _, ours, _, theirs in _path_pairs(model, architecture, source))


def store_hugging_face(model: SuperNet, architecture: Architecture, target: nn.Module) -> None:
    """The other way round: copy one path's weights into a model of transformers.

    What the super-net lacks (poolers, positions beyond its own) stays as it is there. The rules
    and errors are those of `load_hugging_face`.
    """
    _copy((ours, theirs) for _, ours, _, theirs in _path_pairs(model, architecture, target))


def load_generator(model: SuperNet, source: nn.Module) -> None:
    """Copy an ElectraForMaskedLM into a super-net's generator and the embeddings that it shares.

    Raises:
        InvalidInput: if there is no generator, or they differ as in `load_hugging_face`.
    """
    _copy((theirs, ours) for _, ours, _, theirs in _generator_pairs(model, source))


def store_generator(model: SuperNet, target: nn.Module) -> None:
    """The other way round; the rules and errors are those of `load_generator`."""
    _copy((ours, theirs) for _, ours, _, theirs in _generator_pairs(model, target))


def _copy(pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy after all pairs are known to fit; of positions those that both have."""
    with torch.no_grad():
        for source, target in list(pairs):
            rows = min(len(source), len(target))
            target[:rows].copy_(source[:rows])


def _path_pairs(model: SuperNet, architecture: Architecture, other: Any) -> list[Pair]:
    names = {
        **_stem_names(model, other.config, model.stem.projection, "stem.projection"),
        **_chain_names(model, architecture, other.config),
        **_head_names(model, other),
    }
    return list(_pairs(model, other, names))


def _generator_pairs(model: SuperNet, other: Any) -> list[Pair]:
    generator = model.generator
    if generator is None:
        raise InvalidInput(
            "a generator is part of a super-net for replaced_tokens, but this one has the "
            f"objective {model.shape.objective!r}: set pretraining.objective=replaced_tokens"
        )
    path = [
        (f"generator.chain.layers.{layer}.{name}", generator.chain.layers[layer][name])  # type: ignore[index]
        for layer, name in enumerate(generator.path)
    ]
    names = {
        **_stem_names(model, other.config, generator.projection, "generator.projection"),
        **_layer_names(path, other.config, str(generator.path)),
        **_under("generator.head", _ELECTRA_HEAD),
    }
    return list(_pairs(model, other, names))


def _stem_names(
    model: SuperNet, config: Any, projection: nn.Module | None, name: str
) -> dict[str, str]:
    _check_settings(model, config)
    return _STEM if projection is None else {**_STEM, name: _PROJECTION}


def _check_settings(model: SuperNet, config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise InvalidInput(
            f"a model that fits is one of {', '.join(FAMILIES)}, but got {config.model_type!r}"
        )
    if config.hidden_act != "gelu":
        raise InvalidInput(
            f"a model that fits has hidden_act 'gelu', but got {config.hidden_act!r}"
        )
    _check_eps("the super-net's ends", model.shape.layer_norm_eps, config)
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    if model.shape.position_offset != offset:
        raise InvalidInput(
            f"a super-net that fits this {config.model_type} has position_offset {offset}, but got "
            f"{model.shape.position_offset}"
        )


def _check_eps(what: str, eps: float, config: Any) -> None:
    if eps != config.layer_norm_eps:
        raise InvalidInput(
            f"{what} and the model must have the same layer_norm_eps, but got {eps:g} and "
            f"{config.layer_norm_eps:g}"
        )


def _chain_names(model: SuperNet, architecture: Architecture, config: Any) -> dict[str, str]:
    """Our module's name to theirs, for the operators of the path."""
    path = [
        (f"chain.layers.{layer}.{name}", operator)
        for layer, name in enumerate(architecture.operators)
        if not isinstance(operator := model.operator(layer, name), Identity)
    ]
    return _layer_names(path, config, str(architecture))


def _layer_names(
    path: Sequence[tuple[str, nn.Module]], config: Any, architecture: str
) -> dict[str, str]:
    wanted: list[type[nn.Module]] = [Attention, FeedForward] * config.num_hidden_layers
    if [type(operator) for _, operator in path] != wanted:
        raise InvalidInput(
            f"a path for a {config.model_type} of {config.num_hidden_layers} layers has as many "
            f"pairs of attention and feed-forward, but got '{architecture}'"
        )
    names: dict[str, str] = {}
    for number, (prefix, operator) in enumerate(path):
        _check_operator(prefix, operator, config)
        parts = _ATTENTION if isinstance(operator, Attention) else _FEED_FORWARD
        names |= _under(prefix, {k: f"encoder.layer.{number // 2}.{v}" for k, v in parts.items()})
    return names


def _check_operator(name: str, operator: Any, config: Any) -> None:
    _check_eps(name, operator.norm.eps, config)
    if not isinstance(operator, Attention):
        return
    if operator.heads != config.num_attention_heads or operator.relative_reach:
        raise InvalidInput(
            f"a path that fits has the {config.num_attention_heads} heads of this model and no "
            f"relative_reach, but {name} has {operator.heads} heads and a relative_reach of "
            f"{operator.relative_reach}"
        )


def _head_names(model: SuperNet, other: Any) -> dict[str, str]:
    tensors = dict(other.named_parameters(remove_duplicate=False))
    for objective, marker, names in _HEADS:
        if marker not in tensors:
            continue
        if objective != model.shape.objective:
            raise InvalidInput(
                f"a head that fits a super-net for {model.shape.objective} is for the same, but "
                f"{type(other).__name__} has one for {objective}: give the encoder alone, its "
                f".{other.base_model_prefix}"
            )
        return _under("head", names)
    return {}


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{ours}": theirs for ours, theirs in names.items()}


def _pairs(model: SuperNet, other: Any, names: Mapping[str, str]) -> Iterator[Pair]:
    """Both sides' tensors, where `names` may name a module that has a weight and a bias."""
    ours = dict(model.named_parameters())
    theirs = {
        name.removeprefix(f"{other.base_model_prefix}."): tensor
        for name, tensor in other.named_parameters(remove_duplicate=False)
    }
    if other.get_output_embeddings() is not None:
        _check_tied(other)
    for one, another in names.items():
        for part in ("",) if one in ours else (".weight", ".bias"):
            our_name, their_name = one + part, another + part
            if their_name not in theirs:
                raise InvalidInput(f"a model that fits has the tensor {their_name}, but it has not")
            _check_shapes(our_name, ours[our_name], their_name, theirs[their_name])
            yield our_name, ours[our_name], their_name, theirs[their_name]


def _check_tied(other: Any) -> None:
    if other.get_output_embeddings().weight is not other.get_input_embeddings().weight:
        raise InvalidInput(
            "a model that fits ties its decoder to its token embeddings, but this one does not: "
            "set tie_word_embeddings"
        )


def _check_shapes(our_name: str, ours: nn.Parameter, their_name: str, theirs: nn.Parameter) -> None:
    enough = our_name == _POSITIONS and theirs.shape[0] >= ours.shape[0]
    found = theirs.shape[1:] == ours.shape[1:] if enough else theirs.shape == ours.shape
    if not found:
        raise InvalidInput(
            f"a path that fits has the model's sizes, but {our_name} has {tuple(ours.shape)} and "
            f"{their_name} {tuple(theirs.shape)}"
        )
