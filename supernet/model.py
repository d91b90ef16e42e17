"""The super-net: stem, chain of candidate operators, head; a path through it is a child model.

A child on its own is the super-net of a space that holds that child alone, so both share one
class and one naming of weights.

B: sequences, T: tokens, D: hidden size, N: masked positions, V: vocabulary.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from supernet.errors import InvalidInput
from supernet.operators import LAYER_NORM_EPS, Chain, operator_class
from supernet.replaced_tokens import Generator
from supernet.settings import PretrainingSettings, SpaceSettings
from supernet.space import Architecture, OperatorSpec, SearchSpace
from supernet.text import DiscriminatorHead, MaskedLMHead, TextStem


@dataclass(frozen=True)
class TextShape:
    """The sizes that stem, chain and head share, and what the network learns.

    The generator's are those of `replaced_tokens` and 0 for `masked_lm`.
    """

    vocab_size: int
    max_length: int
    pad_id: int
    hidden_size: int
    embedding_size: int
    dropout: float
    layer_norm_eps: float = LAYER_NORM_EPS
    """Of stem, head and generator; operators have theirs as a setting."""
    position_offset: int = 0
    type_vocab_size: int = 2
    objective: str = "masked_lm"
    generator_hidden_size: int = 0
    generator_pairs: int = 0
    generator_heads: int = 0
    generator_relative_reach: int = 0
    discriminator_weight: float = 0.0

    @classmethod
    def of(
        cls,
        space: SpaceSettings,
        *,
        vocab_size: int,
        max_length: int,
        pad_id: int,
        pretraining: PretrainingSettings | None = None,
    ) -> "TextShape":
        """From the settings and what the data's tokenizer says; masked LM if nothing is said."""
        return cls(
            **_objective(space, pretraining or PretrainingSettings()),
            vocab_size=vocab_size,
            max_length=max_length,
            pad_id=pad_id,
            hidden_size=space.hidden_size,
            embedding_size=space.embedding_size or space.hidden_size,
            dropout=space.dropout,
            layer_norm_eps=space.layer_norm_eps,
            position_offset=space.position_offset,
            type_vocab_size=space.type_vocab_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `TextShape(**values)` reads them back."""
        return asdict(self)


def _objective(space: SpaceSettings, pretraining: PretrainingSettings) -> dict[str, Any]:
    if pretraining.objective == "masked_lm":
        return {}
    return {
        "objective": pretraining.objective,
        "generator_hidden_size": pretraining.generator_width(space.hidden_size),
        "generator_pairs": pretraining.generator_layers or (space.layers + 1) // 2,
        "generator_heads": pretraining.generator_heads,
        "generator_relative_reach": pretraining.generator_relative_reach,
        "discriminator_weight": pretraining.discriminator_weight,
    }


class SuperNet(nn.Module):
    """All child models of a search space, sharing weights.

    For the objective `replaced_tokens` its head is a discriminator's, and it holds the generator,
    which is no part of a child: `generator` is None for `masked_lm`.

    Raises:
        InvalidInput: if an operator's kind or setting is wrong.
    """

    def __init__(self, space: SearchSpace, shape: TextShape) -> None:
        super().__init__()
        for name, spec in space.operators.items():
            _check_operator(name, spec)
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
                layer_norm_eps=shape.layer_norm_eps,
                position_offset=shape.position_offset,
                type_vocab_size=shape.type_vocab_size,
            )
            self.chain = Chain(
                layers,
                hidden_size=shape.hidden_size,
                dropout=shape.dropout,
                block_size=space.block_size,
            )
            self.head = _head(shape)
            self.generator = _generator(shape)
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
        """Logits from last hidden states, at flat positions `masked_N` of the B*T tokens.

        (N, V) for masked LM; for replaced tokens (N, 2): original, whose logit is 0, and replaced.
        """
        hidden_ND = self.chain.leave(hidden_BTD).flatten(0, 1)[masked_N]
        logits: torch.Tensor = self.head(hidden_ND, self.stem.tokens.weight)
        if self.generator is None:
            return logits
        return torch.stack([torch.zeros_like(logits), logits], -1)

    def forward(
        self,
        architecture: Architecture,
        input_ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        masked_N: torch.Tensor,
    ) -> torch.Tensor:
        """The child's logits at the flat positions `masked_N` of the B*T tokens: see `predict`."""
        return self.predict(self.hidden(architecture, input_ids_BT, mask_BT), masked_N)

    def generator_logits(
        self,
        input_ids_BT: torch.Tensor,
        mask_BT: torch.Tensor | None,
        masked_N: torch.Tensor,
    ) -> torch.Tensor:
        """The generator's logits (N, V) at the flat positions `masked_N`; there must be one."""
        assert self.generator is not None
        hidden_BTD = self.generator(self.stem(input_ids_BT, project=False), mask_BT)
        logits_NV: torch.Tensor = self.generator.head(
            hidden_BTD.flatten(0, 1)[masked_N], self.stem.tokens.weight
        )
        return logits_NV

    def operator(self, layer: int, name: str) -> nn.Module:
        """One candidate operator."""
        candidates = self.chain.layers[layer]
        assert isinstance(candidates, nn.ModuleDict)
        return candidates[name]


def _head(shape: TextShape) -> MaskedLMHead | DiscriminatorHead:
    if shape.objective == "replaced_tokens":
        return DiscriminatorHead(hidden_size=shape.hidden_size)
    return MaskedLMHead(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        embedding_size=shape.embedding_size,
        layer_norm_eps=shape.layer_norm_eps,
    )


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_GIVEN = ("self", "hidden_size", "dropout")


def _check_operator(name: str, spec: OperatorSpec) -> None:
    """Refuse settings that the operator's class does not declare, or declares to be of a type that
    they are not of."""
    try:
        known = inspect.signature(operator_class(spec.kind).__init__).parameters
    except ValueError as error:
        raise InvalidInput(f"candidate {name!r}: {error}") from None
    names = [key for key in known if key not in _GIVEN]
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key, value in spec.settings:
        if key == "width":
            continue
        if key not in names and not anything:
            raise InvalidInput(
                f"candidate {name!r} of kind {spec.kind!r} has no setting {key!r}; it has: "
                f"{', '.join([*names, 'width'])}"
            )
        kind = known[key].annotation if key in known else None
        if kind in _KINDS and not _is_a(value, kind):
            raise InvalidInput(
                f"{key} of candidate {name!r} must be {_KINDS[kind]}, but got {value!r}"
            )
        if key == "layer_norm_eps" and not float(value) > 0:
            raise InvalidInput(f"{key} of candidate {name!r} must be above 0, but got {value!r}")


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _generator(shape: TextShape) -> Generator | None:
    if shape.objective != "replaced_tokens":
        return None
    return Generator(
        vocab_size=shape.vocab_size,
        embedding_size=shape.embedding_size,
        hidden_size=shape.generator_hidden_size,
        pairs=shape.generator_pairs,
        heads=shape.generator_heads,
        relative_reach=shape.generator_relative_reach,
        dropout=shape.dropout,
        layer_norm_eps=shape.layer_norm_eps,
    )


def meta_supernet(space: SearchSpace, shape: TextShape) -> SuperNet:
    """A super-net without memory for its weights: for counting, and to assign mapped weights."""
    with torch.device("meta"), _NoInitialisation():
        return SuperNet(space, shape)


class _NoInitialisation(TorchFunctionMode):
    """Leaves the functions of `torch.nn.init` out.

    Without memory they do nothing, but `normal_` would import PyTorch's compiler: a second or two.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
