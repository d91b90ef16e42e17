"""BERT's weights in a super-net: the path attention, feed-forward, attention, … is its encoder.

Beside the flow: for comparisons with a Transformer made by hand, and proof that the operators
are BERT's sublayers.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.operators import LAYER_NORM_EPS, Attention, FeedForward, Identity
from supernet.space import Architecture

_POSITIONS = "stem.positions.weight"
_STEM = {
    "stem.tokens.weight": "embeddings.word_embeddings.weight",
    _POSITIONS: "embeddings.position_embeddings.weight",
    "stem.types.weight": "embeddings.token_type_embeddings.weight",
    "stem.norm": "embeddings.LayerNorm",
}
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
_HEAD = {
    "head.transform": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
    "head.bias": "cls.predictions.bias",
}


def load_bert(model: SuperNet, architecture: Architecture, bert: nn.Module) -> None:
    """Copy the weights of a BertModel or BertForMaskedLM into one path of a super-net.

    The path alternates attention and feed-forward, a pair per layer of BERT; identities may stand
    anywhere. Positions beyond the super-net's are left out, and so is the pooler; the head stays
    as it is where `bert` has none.

    Raises:
        InvalidInput: if path and BERT differ in depth, sizes, heads or activation.
    """
    _check_settings(bert.config)
    weights = {name.removeprefix("bert."): value for name, value in bert.state_dict().items()}
    pairs = {**_STEM, **_chain_names(model, architecture, bert.config)}
    if "cls.predictions.bias" in weights:
        pairs |= _HEAD
    for ours, theirs in _tensor_names(model, pairs):
        _copy(model, ours, weights, theirs)


def _check_settings(config: Any) -> None:
    found = (config.hidden_act, config.layer_norm_eps)
    if found != ("gelu", LAYER_NORM_EPS):
        raise InvalidInput(
            f"a BERT that fits has hidden_act 'gelu' and layer_norm_eps {LAYER_NORM_EPS}, but got "
            f"{found[0]!r} and {found[1]}"
        )


def _chain_names(model: SuperNet, architecture: Architecture, config: Any) -> dict[str, str]:
    """Our module's name to BERT's, for the operators of the path."""
    path = [
        (f"chain.layers.{layer}.{name}", operator)
        for layer, name in enumerate(architecture.operators)
        if not isinstance(operator := model.operator(layer, name), Identity)
    ]
    wanted: list[type[nn.Module]] = [Attention, FeedForward] * config.num_hidden_layers
    if [type(operator) for _, operator in path] != wanted:
        raise InvalidInput(
            f"a path for a BERT of {config.num_hidden_layers} layers has as many pairs of "
            f"attention and feed-forward, but got '{architecture}'"
        )
    names = {}
    for number, (prefix, operator) in enumerate(path):
        _check_heads(operator, config)
        parts = _ATTENTION if isinstance(operator, Attention) else _FEED_FORWARD
        for ours, theirs in parts.items():
            names[f"{prefix}.{ours}"] = f"encoder.layer.{number // 2}.{theirs}"
    return names


def _check_heads(operator: nn.Module, config: Any) -> None:
    if isinstance(operator, Attention) and operator.heads != config.num_attention_heads:
        raise InvalidInput(
            f"a path that fits has the {config.num_attention_heads} heads of this BERT, but got "
            f"{operator.heads}"
        )


def _tensor_names(model: SuperNet, pairs: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The names of tensors, where `pairs` names a module that has a weight and a bias."""
    tensors = model.state_dict()
    for ours, theirs in pairs.items():
        if ours in tensors:
            yield ours, theirs
        else:
            yield f"{ours}.weight", f"{theirs}.weight"
            yield f"{ours}.bias", f"{theirs}.bias"


def _copy(model: SuperNet, ours: str, weights: Mapping[str, torch.Tensor], theirs: str) -> None:
    target, source = model.get_parameter(ours), weights[theirs]
    if ours == _POSITIONS:
        source = source[: target.shape[0]]
    if target.shape != source.shape:
        raise InvalidInput(
            f"a path that fits has BERT's sizes, but {ours} has {tuple(target.shape)} and "
            f"{theirs} {tuple(source.shape)}"
        )
    with torch.no_grad():
        target.copy_(source)
