"""The configuration of an exported child model; exported models carry a copy of this file.

It makes the operators known that it names, for a second reason too: transformers keeps the classes
of a folder's code under the folder's last name and a hash of this file and what it imports. Were
the operators not among that, one of two folders named `export` would run the other's.
"""

from typing import Any

from transformers import PreTrainedConfig

from .custom_operators import CUSTOM_KINDS
from .operators import OPERATOR_KINDS

OPERATOR_KINDS.update(CUSTOM_KINDS)


class MagicNasConfig(PreTrainedConfig):  # type: ignore[misc]
    """A child model: its operators from the stem to the head, and the sizes that they share."""

    model_type = "magic_nas"
    _auto_class = "AutoConfig"
    attribute_map = {"num_hidden_layers": "num_layers"}

    def __init__(
        self,
        *,
        layers: tuple[str, ...] = ("attention", "feed_forward"),
        operators: dict[str, dict[str, Any]] | None = None,
        vocab_size: int = 8192,
        hidden_size: int = 128,
        embedding_size: int = 128,
        max_position_embeddings: int = 64,
        pad_token_id: int = 0,
        dropout: float = 0.1,
        layer_norm_eps: float = 1e-12,
        position_offset: int = 0,
        type_vocab_size: int = 2,
        objective: str = "masked_lm",
        classifier_pooling: str = "cls",
        block_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Args: layers: the operator's name per layer; operators: name to kind and settings.

        Left out, `operators` takes every name for a kind with its default settings. `objective` is
        what the weights learnt: "masked_lm" or "replaced_tokens", of which the heads differ.
        `classifier_pooling` is what a classifier reads: "cls", the first token's hidden state, or
        "mean", that of all real tokens (as ModernBERT names them).
        `layer_norm_eps` is that of embeddings and head, `position_offset` the rows of the position
        table before the first token's, which `max_position_embeddings` leaves out. `block_size` is
        how many layers share a width where operators have their own.
        """
        self.layers = list(layers)
        self.operators = (
            {name: {"kind": name} for name in layers} if operators is None else operators
        )
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.embedding_size = embedding_size
        self.max_position_embeddings = max_position_embeddings
        self.dropout = dropout
        self.layer_norm_eps = layer_norm_eps
        self.position_offset = position_offset
        self.type_vocab_size = type_vocab_size
        self.objective = objective
        self.classifier_pooling = classifier_pooling
        self.block_size = block_size
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def num_layers(self) -> int:
        """Operators from the stem to the head."""
        return len(self.layers)
