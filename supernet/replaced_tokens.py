"""Replaced-token detection as in ELECTRA (ICLR 2020): a small generator, and the batches it makes.

The generator fills the masked positions with tokens that it samples; of the batch that comes out
a child says for every real token whether it is the original one.

B: sequences, T: tokens, D: hidden size, E: embedding size, N: masked positions, V: vocabulary.
"""

import zlib

import torch
import torch.nn.functional as F
from torch import nn

from supernet.data.masking import Batch
from supernet.operators import Chain, initialise
from supernet.text import MaskedLMHead


class Generator(nn.Module):
    """A small Transformer with a masked-LM head, over the embeddings of the network it serves.

    Token, position and type embeddings and their normalisation are shared, as ELECTRA ties them;
    the projection, the layers and the head are its own.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        embedding_size: int,
        hidden_size: int,
        pairs: int,
        heads: int,
        relative_reach: int,
        dropout: float,
        layer_norm_eps: float,
    ) -> None:
        super().__init__()
        self.projection = (
            nn.Linear(embedding_size, hidden_size) if embedding_size != hidden_size else None
        )
        attention = {"kind": "attention", "heads": heads, "relative_reach": relative_reach}
        pair: list[dict[str, dict[str, object]]] = [
            {"attention": {**attention, "layer_norm_eps": layer_norm_eps}},
            {"feed_forward": {"kind": "feed_forward", "layer_norm_eps": layer_norm_eps}},
        ]
        self.chain = Chain(pair * pairs, hidden_size=hidden_size, dropout=dropout)
        self.path = ("attention", "feed_forward") * pairs
        self.head = MaskedLMHead(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            embedding_size=embedding_size,
            layer_norm_eps=layer_norm_eps,
        )
        if self.projection is not None:
            initialise(self.projection)

    def forward(self, embedded_BTE: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Embeddings (B, T, E) to hidden states (B, T, the generator's size); see `head`."""
        hidden_BTD = embedded_BTE if self.projection is None else self.projection(embedded_BTE)
        out: torch.Tensor = self.chain(hidden_BTD, mask_BT, self.path)
        return out


def replace_tokens(batch: Batch, logits_NV: torch.Tensor, uniform_N: torch.Tensor) -> Batch:
    """The text of a batch with sampled tokens at its masked positions.

    Its targets are at every real token, special ones included: 1 where the token is another than
    the original, else 0. A sampled token that is the original counts as original.

    Args:
        logits_NV: the generator's, at the masked positions; no gradient comes back through them.
        uniform_N: from 0 to 1, which decide what is sampled.
    """
    sampled_N = sample(logits_NV, uniform_N)
    ids_BT = batch.input_ids_BT.clone()
    ids_BT.view(-1)[batch.masked_N] = sampled_N
    replaced = torch.zeros_like(ids_BT).view(-1)
    replaced[batch.masked_N] = (sampled_N != batch.targets_N).long()
    real_N = batch.attention_mask_BT.flatten().nonzero()[:, 0]
    return Batch(ids_BT, batch.attention_mask_BT, real_N, replaced[real_N])


def sample(logits_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """Tokens (N) from the softmax of logits (N, V), where its running sum passes `uniform_N`."""
    sums_NV = F.softmax(logits_NV.detach().float(), -1).cumsum(-1)
    thresholds_N1 = uniform_N[:, None] * sums_NV[:, -1:]
    found_N = torch.searchsorted(sums_NV, thresholds_N1, right=True)[:, 0]
    return found_N.clamp(max=logits_NV.shape[-1] - 1)


def fixed_uniforms(batch: Batch) -> torch.Tensor:
    """Numbers from 0 to 1 for the masked positions (N), drawn from each sequence alone.

    So what is sampled for a sequence does not depend on the batch that it stands in.
    """
    ids_BT = batch.input_ids_BT.cpu()
    rows_BT = torch.stack([_uniforms_of(row_T) for row_T in ids_BT])
    return rows_BT.flatten().to(batch.masked_N.device)[batch.masked_N]


def _uniforms_of(ids_T: torch.Tensor) -> torch.Tensor:
    stream = torch.Generator().manual_seed(zlib.crc32(ids_T.numpy().tobytes()))
    return torch.rand(len(ids_T), generator=stream)
