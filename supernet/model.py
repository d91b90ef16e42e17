"""The super-net: stem, chain of candidate operators, head; a path through it is a child model.

A child on its own is the super-net of a space that holds that child alone, so both share one
class and one naming of weights.

B: sequences, T: tokens, D: hidden size, N: masked positions, V: vocabulary.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from supernet.errors import InvalidInput
from supernet.operators import Chain
from supernet.settings import SpaceSettings
from supernet.space import Architecture, SearchSpace
from supernet.text import MaskedLMHead, TextStem


@dataclass(frozen=True)
class TextShape:
    """The sizes that stem, chain and head share."""

    vocab_size: int
    max_length: int
    pad_id: int
    hidden_size: int
    embedding_size: int
    dropout: float

    @classmethod
    def of(
        cls, space: SpaceSettings, *, vocab_size: int, max_length: int, pad_id: int
    ) -> "TextShape":
        """From the settings and what the data's tokenizer says."""
        return cls(
            vocab_size=vocab_size,
            max_length=max_length,
            pad_id=pad_id,
            hidden_size=space.hidden_size,
            embedding_size=space.embedding_size or space.hidden_size,
            dropout=space.dropout,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `TextShape(**values)` reads them back."""
        return asdict(self)


class SuperNet(nn.Module):
    """All child models of a search space, sharing weights.

    Raises:
        InvalidInput: if an operator's kind or setting is wrong.
    """

    def __init__(self, space: SearchSpace, shape: TextShape) -> None:
        super().__init__()
        self.space = space
        self.shape = shape
        layers = [{name: space.operators[name].to_dict() for name in row} for row in space.layers]
        try:
            self.stem = TextStem(
                vocab_size=shape.vocab_size,
                max_length=shape.max_length,
                hidden_size=shape.hidden_size,
                embedding_size=shape.embedding_size,
                pad_id=shape.pad_id,
                dropout=shape.dropout,
            )
            self.chain = Chain(layers, hidden_size=shape.hidden_size, dropout=shape.dropout)
            self.head = MaskedLMHead(
                vocab_size=shape.vocab_size,
                hidden_size=shape.hidden_size,
                embedding_size=shape.embedding_size,
            )
        except ValueError as error:
            raise InvalidInput(str(error)) from error

    def hidden(
        self,
        architecture: Architecture,
        input_ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
        token_type_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The child's last hidden states (B, T, D)."""
        hidden_BTD = self.stem(input_ids_BT, token_type_ids_BT)
        out: torch.Tensor = self.chain(hidden_BTD, mask_BT, architecture.operators)
        return out

    def states(
        self,
        architecture: Architecture,
        input_ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """The stem's output and each layer's, L + 1 hidden states (B, T, D)."""
        hidden_BTD = self.stem(input_ids_BT)
        return [hidden_BTD, *self.chain.states(hidden_BTD, mask_BT, architecture.operators)]

    def predict(self, hidden_BTD: torch.Tensor, masked_N: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) from last hidden states, at flat positions `masked_N` of the B*T tokens."""
        logits: torch.Tensor = self.head(
            hidden_BTD.flatten(0, 1)[masked_N], self.stem.tokens.weight
        )
        return logits

    def forward(
        self,
        architecture: Architecture,
        input_ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        masked_N: torch.Tensor,
    ) -> torch.Tensor:
        """The child's logits (N, V) at the flat positions `masked_N` of the B*T tokens."""
        return self.predict(self.hidden(architecture, input_ids_BT, mask_BT), masked_N)

    def operator(self, layer: int, name: str) -> nn.Module:
        """One candidate operator."""
        candidates = self.chain.layers[layer]
        assert isinstance(candidates, nn.ModuleDict)
        return candidates[name]


def meta_supernet(space: SearchSpace, shape: TextShape) -> SuperNet:
    """A super-net without memory for its weights: for counting, and to assign mapped weights."""
    with torch.device("meta"):
        return SuperNet(space, shape)
