"""AdamW that moves what is on the path and leaves the weights and the state of all else alone.

Both engines train with it. Every parameter counts its own steps; from DeepSpeed's stage 1 up, where
the optimiser gets flat shards, it steps the pieces of them that belong to the path.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from supernet.model import SuperNet
from supernet.settings import OptimiserSettings
from supernet.space import Architecture

MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM_STATES = (*MOMENTS, "step")

_MAP = -1
"""In place of a layer: the chain's maps between widths."""

State = dict[str, torch.Tensor]


class PathParameters:
    """The parameters that a step may move: stem, head, and its paths' operators and maps.

    No other parameter requires a gradient. `named` has an order that all workers share.
    """

    def __init__(self, model: SuperNet) -> None:
        self.named: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._maps_on = model.chain.maps_on
        self._operators: dict[tuple[int, str], dict[str, nn.Parameter]] = {
            (layer, name): _named_parameters(operator, f"chain.layers.{layer}.{name}.")
            for layer, candidates in enumerate(model.chain.layers)
            for name, operator in candidates.items()  # type: ignore[operator]
        }
        self._operators |= {
            (_MAP, name): _named_parameters(module, f"chain.maps.{name}.")
            for name, module in model.chain.maps.items()
        }
        inside = {name for operator in self._operators.values() for name in operator}
        self._always = {name: p for name, p in self.named.items() if name not in inside}
        self._on = set(self._operators)

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Let these paths learn; only operators that come or go since the last call are touched."""
        on = dict.fromkeys(pair for path in paths for pair in enumerate(path.operators))
        on |= dict.fromkeys(
            (_MAP, name) for path in paths for _, name in self._maps_on(path.operators)
        )
        for pair in self._on - on.keys():
            self._let_learn(pair, False)
        for pair in on.keys() - self._on:
            self._let_learn(pair, True)
        self._on = set(on)
        self.named = dict(self._always)
        for pair in on:
            self.named.update(self._operators[pair])

    def _let_learn(self, operator: tuple[int, str], learns: bool) -> None:
        for parameter in self._operators[operator].values():
            parameter.requires_grad_(learns)


def _named_parameters(module: nn.Module, prefix: str) -> dict[str, nn.Parameter]:
    return {prefix + name: parameter for name, parameter in module.named_parameters()}


@dataclass(frozen=True)
class Piece:
    """What a worker steps of a parameter: all of it, or a stretch of a flat shard (n,)."""

    tensor: torch.Tensor
    first: int = 0
    """Where in the flattened parameter the stretch begins."""
    shard: torch.Tensor | None = None
    offset: int = 0
    """Where in the shard the stretch begins."""

    def take_gradient(self) -> torch.Tensor:
        """The tensor, with its stretch of the shard's gradient."""
        if self.shard is not None and self.shard.grad is not None:
            self.tensor.grad = self.shard.grad.narrow(0, self.offset, len(self.tensor))
        return self.tensor

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """A copy of the same stretch of a tensor as large as the parameter."""
        return self._stretch(whole).view_as(self.tensor).to(self.tensor.device, copy=True)

    def write(self, values: torch.Tensor, *, into: torch.Tensor) -> None:
        """Write values for the stretch into a tensor as large as the parameter."""
        self._stretch(into).copy_(values.flatten())

    def _stretch(self, whole: torch.Tensor) -> torch.Tensor:
        return whole.view(-1)[self.first : self.first + self.tensor.numel()]


class PathAdamW(torch.optim.AdamW):
    """PyTorch's gradient clipping and fused AdamW on the parameters that are on the path.

    As for BERT, biases and normalisation are left out of the weight decay.
    """

    def __init__(self, model: SuperNet, settings: OptimiserSettings, *, clip: bool = True) -> None:
        """Args: clip: False where the gradient comes in shards, so that others must clip it."""
        self.on_path = PathParameters(model)
        self._clip_norm = settings.clip_norm if clip else 0.0
        decayed: dict[str, Piece] = {}
        free: dict[str, Piece] = {}
        for name, parameter in model.named_parameters():
            (decayed if parameter.ndim > 1 else free)[name] = Piece(parameter)
        super().__init__(
            [
                _group(decayed, weight_decay=settings.weight_decay),
                _group(free, weight_decay=0.0),
            ],
            lr=settings.learning_rate,
            betas=(0.9, settings.adam_beta2),
            fused=True,
        )

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Step the pieces on the path of each group; DeepSpeed calls it group by group."""
        if self._clip_norm:
            nn.utils.clip_grad_norm_(self.on_path.named.values(), self._clip_norm)
        whole = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            pieces = group["pieces"] if group["params"] else {}
            on_path = [pieces[name] for name in self.on_path.named if name in pieces]
            group["params"] = [piece.take_gradient() for piece in on_path]
        super().step(closure)
        for group, parameters in zip(self.param_groups, whole, strict=True):
            for piece in group["params"]:
                piece.grad = None
            group["params"] = parameters

    def set_learning_rate(self, learning_rate: float) -> None:
        """The learning rate of the next step, the same for every parameter."""
        for group in self.param_groups:
            group["lr"] = learning_rate

    def pieces(self) -> Iterator[tuple[str, Piece]]:
        """Every piece of this worker, by its parameter's name."""
        for group in self.param_groups:
            yield from group["pieces"].items()

    def own_state(self) -> State:
        """Adam's state of the pieces by "<state>/<parameter>"; none of what never took a step."""
        return {
            f"{state}/{name}": tensor
            for name, piece in self.pieces()
            for state, tensor in self.state.get(piece.tensor, {}).items()
        }

    def load_own_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take this worker's pieces out of whole states by "<state>/<parameter>"."""
        for name, piece in self.pieces():
            if f"step/{name}" in state:
                found = {moment: piece.of(state[f"{moment}/{name}"]) for moment in MOMENTS}
                step = state[f"step/{name}"].to(piece.tensor.device, copy=True)
                self.state[piece.tensor] = {"step": step, **found}


def _group(pieces: dict[str, Piece], *, weight_decay: float) -> dict[str, object]:
    parameters = [piece.tensor for piece in pieces.values()]
    return {"params": parameters, "pieces": pieces, "weight_decay": weight_decay}


def cut(
    shard: torch.Tensor, *, start: int, parameters: Iterable[tuple[str, int, int]]
) -> dict[str, Piece]:
    """The pieces of a flat shard (n,) that holds a group's elements from `start` on.

    Args:
        parameters: name, first element in the group and number of elements of each.
    """
    pieces = {}
    for name, begin, size in parameters:
        first, last = max(begin, start), min(begin + size, start + len(shard))
        if first < last:
            tensor = shard.detach()[first - start : last - start]
            pieces[name] = Piece(tensor, first - begin, shard, first - start)
    return pieces
