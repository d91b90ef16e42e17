"""The hand-made models that a search is judged by, as paths: BERT, RoBERTa and ELECTRA at any size.

A Transformer layer is two layers of the chain, attention and feed-forward, so such a model is a
space that holds one architecture. No torch in here before a shape is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from supernet.model import TextShape

HEAD_SIZE = 64
SIZES = ("layers", "hidden_size", "heads", "inner_size", "embedding_size", "dropout")
"""What may be changed of a named model in a configuration."""


@dataclass(frozen=True)
class NamedModel:
    """A published model: what makes it that one at any size, and its own sizes."""

    vocab_size: int
    pad_id: int
    max_length: int = 512
    layers: int = 12
    hidden_size: int = 768
    layer_norm_eps: float = 1e-12
    position_offset: int = 0
    type_vocab_size: int = 2
    objective: str = "masked_lm"


NAMED = {
    "bert_base": NamedModel(vocab_size=30522, pad_id=0),
    "roberta_base": NamedModel(
        vocab_size=50265, pad_id=1, layer_norm_eps=1e-5, position_offset=2, type_vocab_size=1
    ),
    "electra_base": NamedModel(vocab_size=30522, pad_id=0, objective="replaced_tokens"),
}
"""BERT (NAACL 2019, uncased), RoBERTa (2019) and ELECTRA's discriminator (ICLR 2020)."""


def baseline(
    name: str,
    *,
    vocab_size: int | None = None,
    max_length: int | None = None,
    pad_id: int | None = None,
    **sizes: Any,
) -> tuple[SearchSpace, Architecture, "TextShape"]:
    """A named model: its space, the one path there, and the sizes of its ends.

    Args:
        vocab_size, max_length, pad_id: none: the published ones.
        sizes: those of `SIZES`; as in `expand_named`.

    Raises:
        InvalidInput: if there is no such model or size.
    """
    from pydantic import ValidationError

    from supernet.model import TextShape
    from supernet.settings import PretrainingSettings, SpaceSettings

    try:
        settings = SpaceSettings.model_validate({"named": name, **sizes})
    except ValidationError as error:
        reasons = (found["msg"].removeprefix("Value error, ") for found in error.errors())
        raise InvalidInput(f"{name}: {'; '.join(reasons)}") from None
    model, space = NAMED[name], settings.build()
    shape = TextShape.of(
        settings,
        vocab_size=model.vocab_size if vocab_size is None else vocab_size,
        max_length=model.max_length if max_length is None else max_length,
        pad_id=model.pad_id if pad_id is None else pad_id,
        pretraining=PretrainingSettings.model_validate({"objective": model.objective}),
    )
    return space, Architecture(tuple(names[0] for names in space.layers)), shape


def expand_named(values: Mapping[str, Any]) -> dict[str, Any]:
    """The full settings of a space for `{named: …}` and sizes.

    `layers` counts Transformer layers. Left out, sizes are the published model's; with another
    `hidden_size` heads are of 64, or one where it is smaller, and the inner size is four times it.

    Raises:
        ValueError: if there is no such model, or a key that is no size.
    """
    sizes = {key: value for key, value in values.items() if key != "named"}
    model = NAMED.get(values["named"]) if isinstance(values["named"], str) else None
    if model is None:
        raise ValueError(f"named must be one of {', '.join(NAMED)}, but got {values['named']!r}")
    unknown = [key for key in sizes if key not in SIZES]
    if unknown:
        raise ValueError(
            f"beside 'named' there may be {', '.join(SIZES)}, but got {unknown[0]!r}: leave it "
            f"out, or write the space without 'named'"
        )
    layers = _whole(sizes, "layers", model.layers)
    hidden_size = _whole(sizes, "hidden_size", model.hidden_size)
    heads = _whole(sizes, "heads", max(1, hidden_size // HEAD_SIZE))
    if hidden_size % heads:
        raise ValueError(
            f"hidden_size must be a multiple of heads, but got {hidden_size} and {heads}: give "
            f"other heads"
        )
    inner_size = _whole(sizes, "inner_size", 4 * hidden_size)
    pair = ("attention", "feed_forward")
    return {
        "layers": 2 * layers,
        "hidden_size": hidden_size,
        "candidates": {
            "attention": {"kind": "attention", "heads": heads},
            "feed_forward": {"kind": "feed_forward", "inner_size": inner_size},
        },
        "per_layer": {layer: (pair[layer % 2],) for layer in range(2 * layers)},
        "layer_norm_eps": model.layer_norm_eps,
        "position_offset": model.position_offset,
        "type_vocab_size": model.type_vocab_size,
        **{key: sizes[key] for key in ("embedding_size", "dropout") if key in sizes},
    }


def _whole(sizes: Mapping[str, Any], key: str, default: int) -> int:
    value = sizes.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a whole number from 1 up, but got {value!r}")
    return value
