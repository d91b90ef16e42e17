"""The search space: which operators each layer of the chain may hold, and what a child model is.

First in the flow: samplers and searchers know a space by `contains`, `sample`, `neighbours`,
`random_neighbour` and `size` alone, so a space with rules across layers fits behind the same
methods. No torch in here.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from supernet.errors import InvalidInput

SEPARATOR = "-"
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

Setting = int | float | str | bool
Border = Callable[[int, int | None, int | None], float]
"""The cost of a map before a block from one width to another; None: the network's own."""


def no_border(block: int, before: int | None, width: int | None) -> float:
    """Maps cost nothing, or there are none."""
    return 0.0


@dataclass(frozen=True, order=True)
class Architecture:
    """A child model: the name of one operator per layer, from the stem to the head.

    `str(architecture)` joins the names with "-"; `Architecture.parse` reads that back.
    """

    operators: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.operators:
            raise InvalidInput("an architecture has at least one layer, but got none")
        for name in self.operators:
            check_operator_name(name)

    def __str__(self) -> str:
        return SEPARATOR.join(self.operators)

    def __len__(self) -> int:
        return len(self.operators)

    @classmethod
    def parse(cls, text: str) -> "Architecture":
        """Read the text form back.

        Raises:
            InvalidInput: if `text` is empty or holds something that is no operator name.
        """
        return cls(tuple(text.strip().split(SEPARATOR)))

    def replace(self, layer: int, operator: str) -> "Architecture":
        """The same architecture with another operator in one layer."""
        return Architecture((*self.operators[:layer], operator, *self.operators[layer + 1 :]))

    def first_difference(self, other: "Architecture") -> int:
        """The first layer in which two architectures of the same depth differ; none: the depth."""
        pairs = enumerate(zip(self.operators, other.operators, strict=True))
        return next((layer for layer, (ours, theirs) in pairs if ours != theirs), len(self))

    def distance(self, other: "Architecture") -> int:
        """In how many layers two architectures of the same depth differ."""
        return sum(a != b for a, b in zip(self.operators, other.operators, strict=True))


def check_operator_name(name: str) -> None:
    """Raise InvalidInput unless `name` can stand in an architecture's text form."""
    if not _NAME.match(name):
        raise InvalidInput(
            f"an operator's name is lower-case letters, digits and '_', beginning with a letter, "
            f"but got {name!r}"
        )


@dataclass(frozen=True)
class OperatorSpec:
    """A candidate operator: its kind ("attention", or a user's "module:Class") and settings."""

    kind: str
    settings: tuple[tuple[str, Setting], ...] = ()

    @classmethod
    def of(cls, kind: str, **settings: Setting) -> "OperatorSpec":
        """`OperatorSpec.of("separable_conv", kernel_size=3)`."""
        return cls(kind, tuple(sorted(settings.items())))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON; `from_dict` reads them back."""
        return {"kind": self.kind, **dict(self.settings)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "OperatorSpec":
        """Read what `to_dict` gave."""
        settings = {key: value for key, value in values.items() if key != "kind"}
        return cls.of(str(values["kind"]), **settings)


@dataclass(frozen=True)
class SearchSpace:
    """A chain of layers, each with its candidate operators; every combination is a child model.

    Args:
        layers: for each layer, the names of its candidates.
        operators: what each name stands for.
    """

    layers: tuple[tuple[str, ...], ...]
    operators: Mapping[str, OperatorSpec] = field(hash=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise InvalidInput("a search space has at least one layer, but got none")
        for name in self.operators:
            check_operator_name(name)
        for number, names in enumerate(self.layers):
            if not names or len(set(names)) != len(names):
                raise InvalidInput(
                    f"a layer has one or more different candidates, but layer {number} has "
                    f"{list(names)}"
                )
            unknown = [name for name in names if name not in self.operators]
            if unknown:
                raise InvalidInput(
                    f"layer {number} names operator {unknown[0]!r}, which is not declared; "
                    f"declared are {sorted(self.operators)}"
                )

    @classmethod
    def uniform(cls, num_layers: int, operators: Mapping[str, OperatorSpec]) -> "SearchSpace":
        """A space in which every layer has the same candidates."""
        return cls((tuple(operators),) * num_layers, dict(operators))

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(len(names) for names in self.layers)

    def contains(self, architecture: Architecture) -> bool:
        """Whether the architecture is one of this space's."""
        return len(architecture) == len(self.layers) and all(
            name in names for name, names in zip(architecture.operators, self.layers, strict=True)
        )

    def check(self, architecture: Architecture) -> Architecture:
        """Return the architecture, or raise InvalidInput that says what is wrong with it."""
        if len(architecture) != len(self.layers):
            raise InvalidInput(
                f"an architecture of this space has {len(self.layers)} layers, but "
                f"'{architecture}' has {len(architecture)}"
            )
        for number, (name, names) in enumerate(
            zip(architecture.operators, self.layers, strict=True)
        ):
            if name not in names:
                raise InvalidInput(
                    f"layer {number} may hold one of {list(names)}, but '{architecture}' has "
                    f"{name!r}"
                )
        return architecture

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture, uniform over the space."""
        return Architecture(tuple(rng.choice(names) for names in self.layers))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Every architecture that differs from this one in one layer."""
        for layer, names in enumerate(self.layers):
            for name in names:
                if name != architecture.operators[layer]:
                    yield architecture.replace(layer, name)

    def random_neighbour(
        self, architecture: Architecture, rng: random.Random, *, changes: int = 1
    ) -> Architecture:
        """An architecture that differs in exactly `changes` layers.

        The layers are drawn uniformly without replacement, then for each another operator,
        uniformly from the others.

        Raises:
            InvalidInput: if fewer than `changes` layers have a choice.
        """
        open_layers = [layer for layer, names in enumerate(self.layers) if len(names) > 1]
        if not 1 <= changes <= len(open_layers):
            raise InvalidInput(
                f"1 <= changes <= {len(open_layers)} (the layers with more than one candidate) "
                f"must hold, but got changes={changes}: lower it, or give more layers a choice"
            )
        for layer in rng.sample(open_layers, changes):
            others = [n for n in self.layers[layer] if n != architecture.operators[layer]]
            architecture = architecture.replace(layer, rng.choice(others))
        return architecture

    @property
    def block_size(self) -> int | None:
        """Layers whose operators have one width on any path; None: all widths are the same."""
        return None

    def cheapest(
        self, cost: Callable[[int, str], float], border: Border = no_border
    ) -> Architecture:
        """The architecture with the least sum of `cost(layer, operator name)`.

        Args:
            border: of maps between widths, which this kind of space has not.
        """
        return Architecture(
            tuple(
                min(names, key=lambda n: cost(layer, n)) for layer, names in enumerate(self.layers)
            )
        )

    def covering(self, rng: random.Random) -> Iterator[Architecture]:
        """Paths that together use every operator of every layer."""
        orders = [rng.sample(names, len(names)) for names in self.layers]
        for turn in range(max(map(len, orders))):
            yield Architecture(tuple(order[turn % len(order)] for order in orders))

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """As independent choices, for searchers that know nothing of architectures."""
        return {f"layer_{number:02d}": names for number, names in enumerate(self.layers)}

    def from_parameters(self, values: Mapping[str, str]) -> Architecture:
        """The architecture of a choice for each of `parameters`."""
        return Architecture(tuple(values[name] for name in self.parameters))

    def to_parameters(self, architecture: Architecture) -> dict[str, str]:
        """The choices that give an architecture."""
        return dict(zip(self.parameters, architecture.operators, strict=True))

    def restricted_to(self, architecture: Architecture) -> "SearchSpace":
        """The space that holds this architecture alone: a child model is its super-net."""
        self.check(architecture)
        used = {name: self.operators[name] for name in architecture.operators}
        return SearchSpace(tuple((name,) for name in architecture.operators), used)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON; `from_dict` reads them back."""
        return {
            "layers": [list(names) for names in self.layers],
            "operators": {name: spec.to_dict() for name, spec in self.operators.items()},
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "SearchSpace":
        """Read what `to_dict` gave, here or in `supernet.block_space`."""
        layers: Sequence[Sequence[str]] = values["layers"]
        operators = {n: OperatorSpec.from_dict(spec) for n, spec in values["operators"].items()}
        rows = tuple(tuple(names) for names in layers)
        if values.get("block_size") is None:
            return SearchSpace(rows, operators)
        from supernet.block_space import BlockSpace

        return BlockSpace(rows, operators, values["block_size"])
