"""Spaces whose operators have widths of their own, one width per block of layers on any path.

As in NAS-BERT (KDD 2021). Behind the same methods as `SearchSpace`; the chain's maps between widths
are `supernet.operators.Chain`'s. No torch in here.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

from supernet.errors import InvalidInput
from supernet.space import Architecture, Border, SearchSpace, no_border

Row = tuple[tuple[str, ...], ...]
"""The candidates of each layer of a block."""
_TRIES = 100


@dataclass(frozen=True)
class BlockSpace(SearchSpace):
    """A chain in blocks of `block_size` layers, in each of which all operators have one width.

    Every operator but identities has a setting `width`. A block of identities alone passes on the
    width that it gets.

    Neighbours differ in one operator, or in the width of one block whose kinds are kept, which is
    our own choice: so every child can be reached. An operator's counterpart at another width is
    the one at the same place among those of its kind and width, as they are declared.
    """

    block_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block_size < 1:
            raise InvalidInput(f"space.block_size must be 1 or more, but got {self.block_size}")
        for name, spec in self.operators.items():
            width = dict(spec.settings).get("width")
            if spec.kind == "identity":
                if width is not None:
                    raise InvalidInput(f"an identity has any width, but {name!r} has {width!r}")
            elif type(width) is not int or width < 1:
                raise InvalidInput(
                    f"with space.block_size every candidate but identities has a width, a whole "
                    f"number above 0, but {name!r} has {width!r}"
                )
        for block in range(self.num_blocks):
            if not self._counts(block):
                raise InvalidInput(
                    f"a block has a width that all its layers offer, or identities in all, but "
                    f"block {block} has neither: see space.per_layer"
                )

    @property
    def num_blocks(self) -> int:
        """The last one may be shorter than the others."""
        return -(-len(self.layers) // self.block_size)

    @property
    def size(self) -> int:
        """How many architectures there are."""
        return math.prod(sum(self._counts(block).values()) for block in range(self.num_blocks))

    def width_of(self, name: str) -> int | None:
        """An operator's width; None: an identity, which has any."""
        return self._width_by_name[name]

    @cached_property
    def _width_by_name(self) -> dict[str, int | None]:
        return {
            name: dict(spec.settings).get("width")  # type: ignore[misc]
            for name, spec in self.operators.items()
        }

    def widths_of(self, architecture: Architecture) -> list[int | None]:
        """The width of each block; None: identities alone.

        Raises:
            InvalidInput: if a block has several.
        """
        return [self._width_of_block(names, architecture) for names in self._cut(architecture)]

    def contains(self, architecture: Architecture) -> bool:
        """Whether the architecture is one of this space's."""
        return super().contains(architecture) and all(
            len(self._widths(names)) < 2 for names in self._cut(architecture)
        )

    def check(self, architecture: Architecture) -> Architecture:
        """Return the architecture, or raise InvalidInput that says what is wrong with it."""
        super().check(architecture)
        self.widths_of(architecture)
        return architecture

    def sample(self, rng: random.Random) -> Architecture:
        """An architecture, uniform over the space."""
        blocks = []
        for block in range(self.num_blocks):
            counts = self._counts(block)
            (width,) = rng.choices(list(counts), weights=list(counts.values()))
            blocks.append(self._draw(self._rows[block][width][1], width, rng))
        return Architecture(tuple(chain(*blocks)))

    def neighbours(self, architecture: Architecture) -> Iterator[Architecture]:
        """Every architecture that differs in one layer, or in one block's width alone."""
        moves = (self._moves(architecture, site) for site in self._sites())
        yield from dict.fromkeys(chain.from_iterable(moves))

    def random_neighbour(
        self, architecture: Architecture, rng: random.Random, *, changes: int = 1
    ) -> Architecture:
        """An architecture that `changes` moves lead to, each as between neighbours.

        Where to move is drawn uniformly from the layers and blocks that have a move and were not
        moved before, then the move uniformly.

        Raises:
            InvalidInput: if fewer than `changes` moves can be made.
        """
        for _ in range(_TRIES):
            found = self._walk(architecture, rng, changes)
            if found != architecture:
                return found
        raise InvalidInput(f"no {changes} changes lead from '{architecture}' to another child")

    def _walk(self, architecture: Architecture, rng: random.Random, changes: int) -> Architecture:
        sites = self._sites()
        for made in range(max(changes, 1)):
            open_sites = [site for site in sites if self._moves(architecture, site)]
            if changes < 1 or not open_sites:
                raise InvalidInput(
                    f"1 <= changes <= {made} (the layers and blocks that can change) must hold "
                    f"from '{architecture}' on, but got changes={changes}: lower it, or give more "
                    f"layers a choice"
                )
            site = rng.choice(open_sites)
            architecture = rng.choice(self._moves(architecture, site))
            sites.remove(site)
        return architecture

    def cheapest(
        self, cost: Callable[[int, str], float], border: Border = no_border
    ) -> Architecture:
        """The architecture with the least sum of `cost(layer, operator name)` and of the maps.

        By dynamic programming over the blocks; what a block costs depends on the width before.

        Args:
            border: of the map before a block (behind the last: their number) from one width to
                another; None stands for the width of the network's ends.
        """
        best: dict[int | None, tuple[float, tuple[str, ...]]] = {None: (0.0, ())}
        for block in range(self.num_blocks):
            options = {
                width: self._cheapest_row(block, width, cost) for width in self._counts(block)
            }
            found: dict[int | None, tuple[float, tuple[str, ...]]] = {}
            for before, (so_far, names) in best.items():
                for width, (more, row) in options.items():
                    after = before if width is None else width
                    total = so_far + more
                    if width is not None:
                        total += border(block, before, width)
                    if after not in found or total < found[after][0]:
                        found[after] = (total, names + row)
            best = found
        ends = [
            (total + (0.0 if width is None else border(self.num_blocks, width, None)), names)
            for width, (total, names) in best.items()
        ]
        return Architecture(min(ends, key=lambda end: end[0])[1])

    def covering(self, rng: random.Random) -> Iterator[Architecture]:
        """Paths that together use every operator of every layer that a path can use."""
        columns = []
        for block in range(self.num_blocks):
            rows: list[tuple[str, ...]] = []
            for width in self._counts(block):
                orders = [rng.sample(names, len(names)) for names in self._row(block, width)]
                turns = range(max(map(len, orders)))
                rows += [tuple(order[turn % len(order)] for order in orders) for turn in turns]
            columns.append(rng.sample(rows, len(rows)))
        for turn in range(max(map(len, columns))):
            yield Architecture(tuple(chain(*(rows[turn % len(rows)] for rows in columns))))

    def restricted_to(self, architecture: Architecture) -> "BlockSpace":
        """The space that holds this architecture alone: a child model is its super-net."""
        one = super().restricted_to(architecture)
        return BlockSpace(one.layers, one.operators, self.block_size)

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """As independent choices: a width per block, and per layer a kind and its place.

        Raises:
            InvalidInput: if not every width of a block has the same operators.
        """
        found: dict[str, tuple[str, ...]] = {}
        for block in range(self.num_blocks):
            widths = [width for width in self._counts(block) if width is not None]
            for width in widths:
                roles = [self._roles(layer, width) for layer in self._layers_of(block)]
                first = [self._roles(layer, widths[0]) for layer in self._layers_of(block)]
                if [set(names) for names in roles] != [set(names) for names in first]:
                    raise InvalidInput(
                        f"this searcher sees a width per block and a kind per layer, so every "
                        f"width must have the same operators, but in block {block} widths "
                        f"{widths[0]} and {width} differ: use the searchers 'random' or "
                        f"'evolution', or declare what is missing"
                    )
            if widths:
                found[f"block_{block:02d}_width"] = tuple(map(str, widths))
            for layer in self._layers_of(block):
                roles_here = self._roles(layer, widths[0] if widths else None)
                found[f"layer_{layer:02d}"] = tuple(roles_here)
        return found

    def from_parameters(self, values: Mapping[str, str]) -> Architecture:
        """The architecture of a choice for each of `parameters`."""
        names = []
        for layer in range(len(self.layers)):
            width = values.get(f"block_{layer // self.block_size:02d}_width")
            roles = self._roles(layer, None if width is None else int(width))
            names.append(roles[values[f"layer_{layer:02d}"]])
        return Architecture(tuple(names))

    def to_parameters(self, architecture: Architecture) -> dict[str, str]:
        """The choices that give an architecture; the first width where identities have any."""
        values = {}
        for key, options in self.parameters.items():
            if key.startswith("block_"):
                width = self.widths_of(architecture)[int(key.split("_")[1])]
                values[key] = options[0] if width is None else str(width)
        for layer, name in enumerate(architecture.operators):
            chosen = values.get(f"block_{layer // self.block_size:02d}_width")
            roles = self._roles(layer, None if chosen is None else int(chosen))
            values[f"layer_{layer:02d}"] = next(r for r, found in roles.items() if found == name)
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON; `SearchSpace.from_dict` reads them back."""
        return {**super().to_dict(), "block_size": self.block_size}

    def _layers_of(self, block: int) -> range:
        first = block * self.block_size
        return range(first, min(first + self.block_size, len(self.layers)))

    def _cut(self, architecture: Architecture) -> list[tuple[str, ...]]:
        return [
            tuple(architecture.operators[layer] for layer in self._layers_of(block))
            for block in range(self.num_blocks)
        ]

    def _widths(self, names: tuple[str, ...]) -> set[int]:
        return {width for name in names if (width := self.width_of(name)) is not None}

    def _width_of_block(self, names: tuple[str, ...], architecture: Architecture) -> int | None:
        widths = sorted(self._widths(names))
        if len(widths) > 1:
            raise InvalidInput(
                f"the operators of a block of {self.block_size} layers have one width, but "
                f"'{architecture}' has {widths} in '{'-'.join(names)}'"
            )
        return widths[0] if widths else None

    def _row(self, block: int, width: int | None) -> Row:
        """What each layer of a block may hold at a width, identities included."""
        return tuple(
            tuple(name for name in self.layers[layer] if self.width_of(name) in (None, width))
            for layer in self._layers_of(block)
        )

    @cached_property
    def _rows(self) -> list[dict[int | None, tuple[int, Row]]]:
        """For each block, at each of its widths (None: identities alone), in how many ways it can
        be filled, and with what."""
        return [self._rows_of(block) for block in range(self.num_blocks)]

    def _rows_of(self, block: int) -> dict[int | None, tuple[int, Row]]:
        names = tuple(name for layer in self._layers_of(block) for name in self.layers[layer])
        rows = {width: self._row(block, width) for width in (None, *sorted(self._widths(names)))}
        ways = {width: math.prod(map(len, row)) for width, row in rows.items()}
        counts = {width: n - ways[None] if width else n for width, n in ways.items()}
        return {width: (counts[width], row) for width, row in rows.items() if counts[width]}

    def _counts(self, block: int) -> dict[int | None, int]:
        return {width: count for width, (count, _) in self._rows[block].items()}

    def _draw(self, row: Row, width: int | None, rng: random.Random) -> tuple[str, ...]:
        """Uniform over a block's ways at a width, of which identities alone are none."""
        while True:
            names = tuple(rng.choice(candidates) for candidates in row)
            if width is None or self._widths(names):
                return names

    def _cheapest_row(
        self, block: int, width: int | None, cost: Callable[[int, str], float]
    ) -> tuple[float, tuple[str, ...]]:
        layers, row = self._layers_of(block), self._row(block, width)
        names = [
            min(candidates, key=lambda name: cost(layer, name))
            for layer, candidates in zip(layers, row, strict=True)
        ]
        if width is not None and not self._widths(tuple(names)):
            swaps = [
                (cost(layer, name) - cost(layer, names[place]), place, name)
                for place, layer in enumerate(layers)
                for name in row[place]
                if self.width_of(name) == width
            ]
            _, place, name = min(swaps)
            names[place] = name
        return sum(map(cost, layers, names)), tuple(names)

    def _sites(self) -> list[tuple[str, int]]:
        layers = [("layer", layer) for layer in range(len(self.layers))]
        return layers + [("block", block) for block in range(self.num_blocks)]

    def _moves(self, architecture: Architecture, site: tuple[str, int]) -> list[Architecture]:
        kind, place = site
        return (
            self._other_operators(architecture, place)
            if kind == "layer"
            else self._other_widths(architecture, place)
        )

    def _other_operators(self, architecture: Architecture, layer: int) -> list[Architecture]:
        own = architecture.operators[layer]
        block = layer // self.block_size
        rest = tuple(architecture.operators[n] for n in self._layers_of(block) if n != layer)
        widths = self._widths(rest)
        return [
            architecture.replace(layer, name)
            for name in self.layers[layer]
            if name != own and (not widths or self.width_of(name) in {None, *widths})
        ]

    def _other_widths(self, architecture: Architecture, block: int) -> list[Architecture]:
        """With each layer's counterpart at another width, where every layer has one."""
        layers = self._layers_of(block)
        (own,) = self._widths(tuple(architecture.operators[n] for n in layers)) or (None,)
        found = []
        for width in self._counts(block):
            if own is None or width in (None, own):
                continue
            names = list(architecture.operators)
            for layer in layers:
                places = {name: role for role, name in self._roles(layer, own).items()}
                names[layer] = self._roles(layer, width).get(places[names[layer]], "")
            if all(names):
                found.append(Architecture(tuple(names)))
        return found

    def _roles(self, layer: int, width: int | None) -> dict[str, str]:
        """The layer's operators at a width by kind and place, such as "separable_conv_1"."""
        counts: dict[str, int] = {}
        found = {}
        for name in self.layers[layer]:
            if self.width_of(name) in (None, width):
                kind = self.operators[name].kind
                place = counts[kind] = counts.get(kind, -1) + 1
                found[f"{kind}_{place}" if place else kind] = name
        return found
