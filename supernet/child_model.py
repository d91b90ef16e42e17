"""A child of a super-net as a model of transformers: its configuration, and a classifier of it.

Exports are made of the same configuration. No files are written or read here.
"""

from collections.abc import Mapping
from typing import Any

import torch

from supernet.configuration_magic_nas import MagicNasConfig
from supernet.model import TextShape
from supernet.modeling_magic_nas import MagicNasForSequenceClassification
from supernet.operators import initialise
from supernet.space import Architecture, SearchSpace


def child_config(
    space: SearchSpace, shape: TextShape, architecture: Architecture, **others: Any
) -> MagicNasConfig:
    """The child's configuration.

    Args: others: keys of `MagicNasConfig`, or of any configuration of transformers.
    """
    return MagicNasConfig(
        layers=architecture.operators,
        operators={
            name: spec.to_dict()
            for name, spec in space.operators.items()
            if name in architecture.operators
        },
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        embedding_size=shape.embedding_size,
        max_position_embeddings=shape.max_length,
        pad_token_id=shape.pad_id,
        dropout=shape.dropout,
        layer_norm_eps=shape.layer_norm_eps,
        position_offset=shape.position_offset,
        type_vocab_size=shape.type_vocab_size,
        objective=shape.objective,
        block_size=space.block_size,
        **others,
    )


def child_classifier(
    space: SearchSpace,
    shape: TextShape,
    architecture: Architecture,
    weights: Mapping[str, torch.Tensor],
    *,
    num_labels: int,
    pooling: str,
    seed: int,
) -> MagicNasForSequenceClassification:
    """The child with the weights that it inherits, copied, and a new head.

    Draws from torch's global generator, which it seeds: of one seed the head begins the same for
    all children of a hidden size.

    Args:
        weights: by the super-net's names; those of its heads and of other children are not used.
        num_labels: outputs of the head.
        pooling: "cls" or "mean"; see `MagicNasConfig`.
    """
    model = MagicNasForSequenceClassification(
        child_config(space, shape, architecture, num_labels=num_labels, classifier_pooling=pooling)
    )
    encoder = model.magic_nas
    encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
    torch.manual_seed(seed)
    model.classifier.apply(initialise)
    return model
