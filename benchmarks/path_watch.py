"""An engine that counts, bit by bit after every step, what moved off the path; it has no say."""

from collections.abc import Mapping, Sequence

import torch

from supernet.engine import Engine
from supernet.space import Architecture


class PathWatch:
    """Wraps an engine of any kind; costs a copy of all weights and states in every step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.model, self.rank, self.world = engine.model, engine.rank, engine.world
        self.off_path_moved = 0
        """Elements off the path whose weight or state changed in a step, summed over steps."""
        self.on_path_moved = 0
        self._paths: Sequence[Architecture] = ()
        self._seen: dict[str, torch.Tensor] = {}

    def begin(self, paths: Sequence[Architecture]) -> None:
        """Note the paths, then begin."""
        self._paths = paths
        self._seen = self._seen or self._look()
        self._engine.begin(paths)

    def backward(self, loss: torch.Tensor) -> None:
        """As the engine does."""
        self._engine.backward(loss)

    def update(self, learning_rate: float) -> None:
        """Take the step and look at what differs from what was seen after the last one."""
        self._engine.update(learning_rate)
        before, after = self._seen, self._look()
        self._seen = after
        for name, _ in self.model.named_parameters():
            moved = _changed(name, before, after)
            if self._is_on_path(name):
                self.on_path_moved += moved
            else:
                self.off_path_moved += moved

    def total(self, values: Sequence[float]) -> list[float]:
        """As the engine does."""
        return self._engine.total(values)

    def weights(self) -> dict[str, torch.Tensor]:
        """As the engine does."""
        return self._engine.weights()

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """As the engine does."""
        return self._engine.optimizer_state()

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """As the engine does."""
        self._engine.load_optimizer_state(state)

    def _look(self) -> dict[str, torch.Tensor]:
        seen = {f"weight/{name}": tensor for name, tensor in self._engine.weights().items()}
        seen |= self._engine.optimizer_state()
        return {name: tensor.detach().clone() for name, tensor in seen.items()}

    def _is_on_path(self, name: str) -> bool:
        parts = name.split(".")
        if parts[:2] != ["chain", "layers"]:
            return True
        return any(path.operators[int(parts[2])] == parts[3] for path in self._paths)


def _changed(
    name: str, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> int:
    """How many elements of a parameter differ in weight or state; a step count counts for all."""
    size = after[f"weight/{name}"].numel()
    differs = torch.zeros(size, dtype=torch.bool)
    for state in ("weight", "exp_avg", "exp_avg_sq", "step"):
        old, new = before.get(f"{state}/{name}"), after.get(f"{state}/{name}")
        if old is None and new is None:
            continue
        if old is None or new is None:
            return size
        differs |= (old.flatten().view(torch.int32) != new.flatten().view(torch.int32)).cpu()
    return int(differs.sum())
