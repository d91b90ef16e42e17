"""What scoring a child model gives: one row of the search."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """A child's score with inherited weights; loss and accuracy are None where it failed."""

    architecture: str
    val_loss_nats: float | None
    masked_accuracy: float | None
    num_params: int
    flops: int
    wall_s: float
    supernet_version: str
    error: str | None = None
    latency_ms: float | None = None
    """Predicted; None where it was not measured."""

    def to_row(self) -> dict[str, Any]:
        """Plain values, for JSON; `Score(**row)` reads them back."""
        row = asdict(self)
        if self.latency_ms is None:
            del row["latency_ms"]
        return row
