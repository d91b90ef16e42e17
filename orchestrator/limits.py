"""Limits on a child's costs, such as "num_params <= 1.5e6 and flops <= 2e8".

Read from the configuration, applied before a child is scored. Imports no torch.
"""

import ast
import difflib
import itertools
import math
import operator
import random
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from supernet.errors import InvalidInput
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from supernet.cost import Cost, CostModel

METRICS = ("num_params", "flops", "latency_ms")
SAMPLE_TRIES = 10_000
"""Uniform draws before the part of a space within limits counts as used up."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    "<": operator.lt,
    ">=": operator.ge,
    ">": operator.gt,
}
_SYMBOLS: dict[type[ast.cmpop], str] = {ast.LtE: "<=", ast.Lt: "<", ast.GtE: ">=", ast.Gt: ">"}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: lambda base, exponent: float(base) ** exponent,  # whole numbers would grow for ever
}
_MIRRORED = {"<=": ">=", "<": ">", ">=": "<=", ">": "<"}
_ALLOWED = (
    f"allowed are comparisons of {', '.join(METRICS)} with a number by <=, <, >= or >, joined "
    f"with 'and', such as 'num_params <= 1.5e6 and flops <= 2e8'"
)


@dataclass(frozen=True)
class Bound:
    """One comparison: `metric symbol value`."""

    metric: str
    symbol: str
    value: int | float

    def allows(self, number: float) -> bool:
        """Whether the number keeps to this bound."""
        return _COMPARE[self.symbol](number, self.value)

    def leaves_room(self, other: "Bound") -> bool:
        """Whether some number keeps to both."""
        return self.is_upper == other.is_upper or (
            self.allows(other.value) and other.allows(self.value)
        )

    @property
    def is_upper(self) -> bool:
        """Whether it holds below its value."""
        return self.symbol in ("<=", "<")

    def __str__(self) -> str:
        return f"{self.metric} {self.symbol} {_text(self.value)}"


@dataclass(frozen=True)
class Limits:
    """Bounds that all hold; `str(limits)` gives what `Limits.parse` reads back."""

    bounds: tuple[Bound, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Limits":
        """Read limits; nothing of the text is ever run. An empty text: no limits.

        Raises:
            InvalidInput: naming what is not allowed, where it stands, and what is.
        """
        line = " ".join(text.split())
        return cls(tuple(_Reader(line).bounds()) if line else ())

    def allow(self, cost: "Cost") -> bool:
        """Whether a child of this cost is within the limits."""
        return all(bound.allows(getattr(cost, bound.metric)) for bound in self.bounds)

    @property
    def metrics(self) -> set[str]:
        """Those that are bounded."""
        return {bound.metric for bound in self.bounds}

    def admit(self, architecture: Architecture, cost_model: "CostModel | None") -> bool:
        """Whether a child is within the limits; without any, its cost need not be known."""
        if not self.bounds:
            return True
        assert cost_model is not None, "limits want costs"
        return self.allow(cost_model.cost(architecture))

    def check_feasible(self, cost_model: "CostModel") -> None:
        """Refuse a bound that no child meets, and two that no number meets.

        Raises:
            InvalidInput: with the smallest or largest possible value and the child that has it, or
                with the two bounds.
        """
        for one, other in itertools.combinations(self.bounds, 2):
            if one.metric == other.metric and not one.leaves_room(other):
                raise InvalidInput(
                    f"limits must leave room between them, but no {one.metric} has both {one} and "
                    f"{other}: move or leave out one of them"
                )
        for bound in self.bounds:
            upper = bound.is_upper
            nearest = (cost_model.cheapest if upper else cost_model.dearest)(bound.metric)
            value = getattr(cost_model.cost(nearest), bound.metric)
            if not bound.allows(value):
                raise InvalidInput(
                    f"no architecture of the space has {bound}: the "
                    f"{'smallest' if upper else 'largest'} possible {bound.metric} is "
                    f"{_readable(value)}, of '{nearest}'; {'raise' if upper else 'lower'} the "
                    f"limit, or {'shrink' if upper else 'enlarge'} the vocabulary, the hidden size "
                    f"or the operators"
                )

    def __str__(self) -> str:
        return " and ".join(map(str, self.bounds))


def sample_within(
    space: SearchSpace,
    cost_model: "CostModel | None",
    limits: Limits,
    rng: random.Random,
    *,
    exclude: Collection[Architecture],
) -> Architecture | None:
    """An architecture uniform over those within limits and not excluded.

    None: not found in SAMPLE_TRIES draws, so that there is none or next to none.
    """
    for _ in range(SAMPLE_TRIES):
        architecture = space.sample(rng)
        if architecture not in exclude and limits.admit(architecture, cost_model):
            return architecture
    return None


class _Reader:
    """Walks the syntax tree of a limits text; whatever it does not know is refused."""

    def __init__(self, text: str) -> None:
        self._text = text

    def bounds(self) -> list[Bound]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tree = ast.parse(self._text, mode="eval")
        except SyntaxError as error:
            start = error.offset - 1 if error.offset else len(self._text)
            raise self._refusal(start, self._text[start:]) from None
        except (ValueError, RecursionError, MemoryError, Warning):
            raise self._refusal(0, self._text) from None
        try:
            return list(self._of(tree.body))
        except RecursionError:
            raise self._refusal(0, self._text) from None

    def _of(self, node: ast.expr) -> Iterator[Bound]:
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            for value in node.values:
                yield from self._of(value)
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, compare, right in zip(sides, node.ops, sides[1:], strict=False):
                yield self._bound(node, left, compare, right)
        else:
            raise self._refused(node)

    def _bound(
        self, node: ast.Compare, left: ast.expr, compare: ast.cmpop, right: ast.expr
    ) -> Bound:
        symbol = _SYMBOLS.get(type(compare))
        if symbol is None:
            raise self._refused(node)
        if isinstance(left, ast.Name):
            return Bound(self._metric(left), symbol, self._number(right))
        if isinstance(right, ast.Name):
            return Bound(self._metric(right), _MIRRORED[symbol], self._number(left))
        self._number(left)
        self._number(right)
        raise self._refused(node)

    def _metric(self, node: ast.Name) -> str:
        if node.id not in METRICS:
            near = difflib.get_close_matches(node.id, METRICS, n=1, cutoff=0.0)
            raise self._refused(node, hint=f"; did you mean {near[0]!r}?")
        return node.id

    def _number(self, node: ast.expr) -> int | float:
        """A constant, or arithmetic on such."""
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            value: int | float = node.value  # type: ignore[assignment]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = -self._number(node.operand)
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            value = self._calculated(node)
        else:
            raise self._refused(node)
        if not math.isfinite(value):
            raise self._refused(node)
        return value

    def _calculated(self, node: ast.BinOp) -> int | float:
        left, right = self._number(node.left), self._number(node.right)
        try:
            value: int | float | complex = _ARITHMETIC[type(node.op)](left, right)
        except ArithmeticError:
            raise self._refused(node) from None
        if isinstance(value, complex):
            raise self._refused(node)
        return value

    def _refused(self, node: ast.expr, *, hint: str = "") -> InvalidInput:
        """Syntax trees count in bytes of UTF-8."""
        line = self._text.encode()
        start = len(line[: node.col_offset].decode())
        return self._refusal(start, line[node.col_offset : node.end_col_offset].decode(), hint)

    def _refusal(self, start: int, part: str, hint: str = "") -> InvalidInput:
        return InvalidInput(
            f"limits {self._text!r}: not allowed is {repr(part) if part else 'the end'} at "
            f"position {start + 1}{hint}; {_ALLOWED}"
        )


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _text(value: int | float) -> str:
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)
