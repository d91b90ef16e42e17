"""The two ends of the chain for text: embeddings before it, a head behind it.

Embeddings and masked-LM head as in BERT, but the embeddings may be narrower than the chain. This
file depends on torch and `operators` alone: exported models carry a copy.

B: sequences, T: tokens, D: hidden size, E: embedding size, N: masked positions, V: vocabulary,
L: labels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .operators import LAYER_NORM_EPS, initialise


class TextStem(nn.Module):
    """Token, position and type embeddings, normalised; projected where narrower than the chain."""

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        hidden_size: int,
        embedding_size: int,
        pad_id: int,
        dropout: float,
        layer_norm_eps: float = LAYER_NORM_EPS,
        position_offset: int = 0,
        type_vocab_size: int = 2,
    ) -> None:
        """Args: position_offset: rows of the table before the first token's: RoBERTa has 2."""
        super().__init__()
        self.dropout = dropout
        self.max_length = max_length
        self.pad_id = pad_id
        self.tokens = nn.Embedding(vocab_size, embedding_size)
        self.position_offset = position_offset
        self.positions = nn.Embedding(position_offset + max_length, embedding_size)
        self.types = nn.Embedding(type_vocab_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size, eps=layer_norm_eps)
        self.projection = (
            nn.Linear(embedding_size, hidden_size) if embedding_size != hidden_size else None
        )
        self.apply(initialise)
        self.zero_padding()

    def zero_padding(self) -> None:
        """As in BERT, the embedding of the padding token begins as zeros."""
        with torch.no_grad():
            self.tokens.weight[self.pad_id] = 0.0

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        token_type_ids_BT: torch.Tensor | None = None,
        *,
        project: bool = True,
    ) -> torch.Tensor:
        """Token ids (B, T) and types (B, T), none: all 0, to hidden states (B, T, D).

        Where there is one type alone, all tokens are of it, whatever types are given. Without
        `project` to the normalised embeddings (B, T, E).
        """
        length = input_ids_BT.shape[1]
        if length > self.max_length:
            raise ValueError(
                f"a sequence has at most {self.max_length} tokens, the positions that this model "
                f"knows, but got {length}"
            )
        typeless = token_type_ids_BT is None or self.types.num_embeddings == 1
        types_BTE = self.types.weight[0] if typeless else self.types(token_type_ids_BT)
        first = self.position_offset
        positions_TE = self.positions.weight[first : first + length]
        embedded_BTE = self.tokens(input_ids_BT) + types_BTE + positions_TE
        embedded_BTE = F.dropout(self.norm(embedded_BTE), self.dropout, self.training)
        if self.projection is None or not project:
            return embedded_BTE
        hidden_BTD: torch.Tensor = self.projection(embedded_BTE)
        return hidden_BTD

    def flops(self, length: int) -> int:
        """Floating-point operations for one sequence of `length` tokens: the projection's."""
        if self.projection is None:
            return 0
        return 2 * length * self.projection.in_features * self.projection.out_features


class MaskedLMHead(nn.Module):
    """BERT's masked-LM head: transform, decoder tied to the token embeddings, bias."""

    def __init__(
        self,
        *,
        vocab_size: int,
        hidden_size: int,
        embedding_size: int,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_size, embedding_size)
        self.norm = nn.LayerNorm(embedding_size, eps=layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.apply(initialise)

    def forward(self, hidden_ND: torch.Tensor, token_embeddings_VE: torch.Tensor) -> torch.Tensor:
        """Hidden states (…, D) at the positions asked for, and the tied embeddings, to (…, V)."""
        return F.linear(
            self.norm(F.gelu(self.transform(hidden_ND))), token_embeddings_VE, self.bias
        )

    def flops(self, length: int) -> int:
        """Floating-point operations for `length` positions."""
        width, embedding = self.transform.in_features, self.transform.out_features
        return 2 * length * (width * embedding + embedding * self.bias.shape[0])


class DiscriminatorHead(nn.Module):
    """ELECTRA's head (ICLR 2020): dense, GELU, and one logit, high where a token was replaced."""

    def __init__(self, *, hidden_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.prediction = nn.Linear(hidden_size, 1)
        self.apply(initialise)

    def forward(
        self, hidden_ND: torch.Tensor, token_embeddings_VE: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states (…, D) to logits (…); the embeddings that other heads use are not used."""
        logits_N: torch.Tensor = self.prediction(F.gelu(self.dense(hidden_ND))).squeeze(-1)
        return logits_N

    def flops(self, length: int) -> int:
        """Floating-point operations for `length` positions."""
        width = self.dense.in_features
        return 2 * length * (width * width + width)


class ClassificationHead(nn.Module):
    """One hidden state per sequence to logits: linear, tanh, dropout, linear, as in RoBERTa.

    Args: pooling: "cls", the first token's hidden state, or "mean", the mean over real tokens.
    """

    def __init__(
        self, *, hidden_size: int, num_labels: int, dropout: float, pooling: str = "cls"
    ) -> None:
        super().__init__()
        if pooling not in ("cls", "mean"):
            raise ValueError(f"classifier_pooling must be 'cls' or 'mean', but got {pooling!r}")
        self.pooling = pooling
        self.dropout = dropout
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_labels)
        self.apply(initialise)

    def forward(
        self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states (B, T, D), and a mask that is 1 at real tokens, to logits (B, L)."""
        state_BD = hidden_BTD[:, 0]
        if self.pooling == "mean":
            state_BD = _mean_of_real(hidden_BTD, mask_BT)
        pooled_BD = self.dense(state_BD).tanh()
        logits_BL: torch.Tensor = self.output(F.dropout(pooled_BD, self.dropout, self.training))
        return logits_BL


def _mean_of_real(hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
    if mask_BT is None:
        return hidden_BTD.mean(dim=1)
    real_BT1 = mask_BT.to(hidden_BTD.dtype)[:, :, None]
    return (hidden_BTD * real_BT1).sum(dim=1) / real_BT1.sum(dim=1).clamp(min=1)
