"""The candidate operators of a layer; each maps hidden states to hidden states of the same shape.

Attention and feed-forward are BERT's two sublayers, so that the path attention, feed-forward,
attention, … is a BERT encoder. This file depends on torch alone: exported models carry a copy.

B: sequences, T: tokens, D: hidden size, N: attention heads, H: size of a head.
"""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

LAYER_NORM_EPS = 1e-12
INITIALIZER_RANGE = 0.02


class Attention(nn.Module):
    """Multi-head self-attention with residual and layer normalisation, as in BERT.

    With `relative_reach` R > 0 a learnt bias per head and distance -R … R, farther ones counting
    as R, is added to the attention logits, as in T5 (JMLR 2020) but without its buckets; it begins
    as ALiBi's slopes (ICLR 2022). Together they are our own choice: small models on little text
    find near tokens at once so, where position embeddings alone take millions of tokens.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        dropout: float,
        heads: int = 4,
        relative_reach: int = 0,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            raise ValueError(
                f"hidden_size must be a multiple of heads, but got hidden_size={hidden_size} and "
                f"heads={heads}"
            )
        if relative_reach < 0:
            raise ValueError(f"relative_reach >= 0 must hold (0: none), but got {relative_reach}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)
        self.relative_reach = relative_reach
        if relative_reach:
            distances = torch.arange(-relative_reach, relative_reach + 1.0).abs()
            self.bias = nn.Parameter(-torch.outer(0.5 ** torch.arange(heads), distances))

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Args: hidden (B, T, D); mask (B, T), True at real tokens, or None where all are real."""
        query_BNTH, key_BNTH, value_BNTH = (
            linear(hidden_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed_BNTH = F.scaled_dot_product_attention(
            query_BNTH,
            key_BNTH,
            value_BNTH,
            attn_mask=self._logit_mask(mask_BT, query_BNTH),
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BTD = self.output(mixed_BNTH.transpose(1, 2).flatten(-2))
        mixed_BTD = F.dropout(mixed_BTD, self.dropout, self.training)
        normed: torch.Tensor = self.norm(hidden_BTD + mixed_BTD)
        return normed

    def _logit_mask(
        self, mask_BT: torch.Tensor | None, query_BNTH: torch.Tensor
    ) -> torch.Tensor | None:
        """What is added to the logits (1 or B, N, T, T), or a mask, True where one may look."""
        mask_B11T = None if mask_BT is None else mask_BT[:, None, None, :]
        if not self.relative_reach:
            return mask_B11T
        positions_T = torch.arange(query_BNTH.shape[-2], device=query_BNTH.device)
        reach = self.relative_reach
        distances_TT = (positions_T - positions_T[:, None]).clamp(-reach, reach) + reach
        bias_1NTT = self.bias[:, distances_TT][None].to(query_BNTH.dtype)
        return bias_1NTT if mask_B11T is None else bias_1NTT.where(mask_B11T, -torch.inf)

    def flops(self, length: int) -> int:
        """Floating-point operations for one sequence of `length` tokens: 2 per multiply-add."""
        width = self.query.in_features
        return 2 * length * (4 * width * width + 2 * length * width)


class FeedForward(nn.Module):
    """Two linear maps with a GELU between, residual and layer normalisation, as in BERT."""

    def __init__(
        self,
        *,
        hidden_size: int,
        dropout: float,
        inner_size: int = 0,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        if inner_size < 0:
            raise ValueError(f"inner_size >= 0 must hold (0: 4 x hidden), but got {inner_size}")
        self.dropout = dropout
        self.inner = nn.Linear(hidden_size, inner_size or 4 * hidden_size)
        self.output = nn.Linear(self.inner.out_features, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Args: hidden (B, T, D); the mask is not needed, for tokens do not mix."""
        inner_BTD = self.output(F.gelu(self.inner(hidden_BTD)))
        inner_BTD = F.dropout(inner_BTD, self.dropout, self.training)
        normed: torch.Tensor = self.norm(hidden_BTD + inner_BTD)
        return normed

    def flops(self, length: int) -> int:
        """Floating-point operations for one sequence of `length` tokens."""
        return 2 * length * 2 * self.inner.in_features * self.inner.out_features


class SeparableConv(nn.Module):
    """Depthwise convolution over tokens, GELU, pointwise map; residual and layer normalisation.

    H² + K·H weights as in NAS-BERT (KDD 2021); the GELU between the two is our own choice.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        dropout: float,
        kernel_size: int = 3,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, but got {kernel_size}")
        self.dropout = dropout
        self.depthwise = nn.Conv1d(
            hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size
        )
        self.pointwise = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=layer_norm_eps)

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Args: hidden (B, T, D); mask (B, T): padding counts as zeros beyond the sequence."""
        seen_BTD = hidden_BTD if mask_BT is None else hidden_BTD * mask_BT[:, :, None]
        mixed_BTD = self.depthwise(seen_BTD.transpose(1, 2)).transpose(1, 2)
        mixed_BTD = self.pointwise(F.gelu(mixed_BTD))
        mixed_BTD = F.dropout(mixed_BTD, self.dropout, self.training)
        normed: torch.Tensor = self.norm(hidden_BTD + mixed_BTD)
        return normed

    def flops(self, length: int) -> int:
        """Floating-point operations for one sequence of `length` tokens."""
        width, kernel = self.pointwise.in_features, self.depthwise.kernel_size[0]
        return 2 * length * width * (width + kernel)


class Identity(nn.Module):
    """Returns its input: no residual, no normalisation, no parameters."""

    def __init__(self, *, hidden_size: int, dropout: float) -> None:
        super().__init__()

    def forward(self, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None) -> torch.Tensor:
        """Args: hidden (B, T, D); the mask is not needed."""
        return hidden_BTD

    def flops(self, length: int) -> int:
        """Nothing is computed."""
        return 0


OPERATOR_KINDS: dict[str, type[nn.Module]] = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "separable_conv": SeparableConv,
    "identity": Identity,
}


def operator_class(kind: str) -> type[nn.Module]:
    """The class of an operator: one of ours by name, or a user's as "module:Class".

    Raises:
        ValueError: if there is no such kind.
    """
    if kind in OPERATOR_KINDS:
        return OPERATOR_KINDS[kind]
    module, colon, name = kind.partition(":")
    if not colon:
        raise ValueError(
            f"unknown operator kind {kind!r}; known are {', '.join(OPERATOR_KINDS)}, or your own "
            f"class as 'module:Class'"
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load the operator {kind!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module) and hasattr(found, "flops")):
        raise ValueError(f"{kind!r} must be an nn.Module with a method flops(length)")
    return found


def build_operator(spec: Mapping[str, Any], *, hidden_size: int, dropout: float) -> nn.Module:
    """An operator from its kind and settings, initialised as in BERT.

    Raises:
        ValueError: if the kind is unknown or a setting is unknown or out of range.
    """
    settings = {key: value for key, value in spec.items() if key not in ("kind", "width")}
    try:
        module = operator_class(spec["kind"])(hidden_size=hidden_size, dropout=dropout, **settings)
    except TypeError as error:
        raise ValueError(
            f"operator kind {spec['kind']!r} with settings {settings}: {error}"
        ) from None
    return module.apply(initialise)


def initialise(module: nn.Module) -> None:
    """BERT's initialisation: normal weights of standard deviation 0.02, zero biases, unit norms.

    Depthwise convolutions keep torch's own: at 0.02 their few weights would pass on next to
    nothing (our own choice).
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=INITIALIZER_RANGE)


class Chain(nn.Module):
    """Layers in a row, each holding its candidate operators; a path runs one of each layer.

    Operators may have a `width` of their own. Where a path comes to one of another width than the
    hidden states have, a linear map stands before it, as in NAS-BERT (KDD 2021); there is one for
    each block of layers and each pair of widths that can meet there, and a last one leads back to
    the chain's own width. Identities pass on whatever width they get.
    """

    def __init__(
        self,
        layers: list[dict[str, dict[str, Any]]],
        *,
        hidden_size: int,
        dropout: float,
        block_size: int | None = None,
    ) -> None:
        """Args:
        layers: for each layer, operator name to its kind and settings.
        block_size: layers in a block, all of whose operators have one width on any path.
        """
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    name: build_operator(
                        spec, hidden_size=spec.get("width", hidden_size), dropout=dropout
                    )
                    for name, spec in candidates.items()
                }
            )
            for candidates in layers
        )
        self.hidden_size = hidden_size
        self.block_size = block_size or 1
        self.widths = [
            {name: _width(spec, hidden_size) for name, spec in candidates.items()}
            for candidates in layers
        ]
        self.maps = nn.ModuleDict(
            {
                map_name(*found): nn.Linear(found[1], found[2]).apply(initialise)
                for found in self._meetings()
            }
        )

    def forward(
        self,
        hidden_BTD: torch.Tensor,
        mask_BT: torch.Tensor | None,
        path: tuple[str, ...],
    ) -> torch.Tensor:
        """Args: hidden (B, T, D); mask (B, T) or None; path: the operator's name per layer."""
        for state_BTD in self.states(hidden_BTD, mask_BT, path):
            hidden_BTD = state_BTD
        return self.leave(hidden_BTD)

    def states(
        self,
        hidden_BTD: torch.Tensor,
        mask_BT: torch.Tensor | None,
        path: tuple[str, ...],
        *,
        first: int = 0,
    ) -> Iterator[torch.Tensor]:
        """Each layer's output (B, T, its width) in turn, from layer `first`, whose input is given.

        The last one has still to `leave` the chain.
        """
        rest = zip(list(self.layers)[first:], path[first:], strict=True)
        for layer, (_, name) in enumerate(rest, first):
            hidden_BTD = self.step(layer, name, hidden_BTD, mask_BT)
            yield hidden_BTD

    def step(
        self, layer: int, name: str, hidden_BTD: torch.Tensor, mask_BT: torch.Tensor | None
    ) -> torch.Tensor:
        """One layer's output (B, T, its width) of the output of the layer before it."""
        width = self.widths[layer][name]
        if width is not None and hidden_BTD.shape[-1] != width:
            hidden_BTD = self._map(layer // self.block_size, hidden_BTD, width)
        out: torch.Tensor = self.layers[layer][name](hidden_BTD, mask_BT)  # type: ignore[index]
        return out

    def leave(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """The last layer's output at the chain's own width (B, T, D)."""
        if hidden_BTD.shape[-1] == self.hidden_size:
            return hidden_BTD
        return self._map(self._blocks(), hidden_BTD, self.hidden_size)

    def maps_on(self, path: tuple[str, ...]) -> list[tuple[int, str]]:
        """The maps that a path uses: before which layer (behind the last: their number), and the
        name."""
        found, before = [], self.hidden_size
        for layer, width in enumerate(self.widths_on(path)):
            if width != before:
                found.append((layer, map_name(layer // self.block_size, before, width)))
            before = width
        if before != self.hidden_size:
            found.append((len(path), map_name(self._blocks(), before, self.hidden_size)))
        return found

    def widths_on(self, path: tuple[str, ...]) -> list[int]:
        """The width of each layer's output on a path."""
        widths, before = [], self.hidden_size
        for candidates, name in zip(self.widths, path, strict=True):
            before = candidates[name] or before
            widths.append(before)
        return widths

    @property
    def widest(self) -> int:
        """The most numbers that a hidden state has per token."""
        widths = [width or 0 for row in self.widths for width in row.values()]
        return max([self.hidden_size, *widths])

    def _map(self, block: int, hidden_BTD: torch.Tensor, width: int) -> torch.Tensor:
        mapped: torch.Tensor = self.maps[map_name(block, hidden_BTD.shape[-1], width)](hidden_BTD)
        return mapped

    def _blocks(self) -> int:
        return -(-len(self.layers) // self.block_size)

    def _meetings(self) -> list[tuple[int, int, int]]:
        """Block, width before and width in it, of all that can meet."""
        found, before = [], [self.hidden_size]
        for block in range(self._blocks()):
            rows = self.widths[block * self.block_size : (block + 1) * self.block_size]
            widths = _common_widths(rows)
            found += [(block, one, other) for one in before for other in widths if one != other]
            passes = all(None in row.values() for row in rows)
            before = sorted({*widths, *(before if passes else ())})
        return found + [
            (self._blocks(), one, self.hidden_size) for one in before if one != self.hidden_size
        ]


def _width(spec: Mapping[str, Any], hidden_size: int) -> int | None:
    """None: any."""
    return None if spec["kind"] == "identity" else int(spec.get("width", hidden_size))


def _common_widths(rows: list[dict[str, int | None]]) -> list[int]:
    """Those that a block can have: of some layer, and in every layer there or passed on."""
    every = {width for row in rows for width in row.values() if width is not None}
    return sorted(
        width for width in every if all({width, None} & set(row.values()) for row in rows)
    )


def map_name(block: int, before: int, width: int) -> str:
    """What a map from one width to another is called."""
    return f"block{block}_{before}_to_{width}"
