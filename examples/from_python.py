"""A run from Python, with a searcher of one's own: `python examples/from_python.py [OUT]`.

Trains the quickstart's super-net, then climbs from the best child so far to its neighbours.
"""

import random
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator import load_config, load_leaderboard, run, search
from supernet.space import Architecture, SearchSpace

QUICKSTART = Path(__file__).parent / "quickstart.yaml"


class Climber:
    """Changes one operator of the best child so far."""

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        self.space, self.rng = space, random.Random(seed)
        self.best: tuple[float, Architecture] | None = None

    def ask(self) -> Architecture:
        """The next child to score."""
        if self.best is None:
            return self.space.sample(self.rng)
        return self.space.random_neighbour(self.best[1], self.rng)

    def tell(self, architecture: Architecture, metrics: Mapping[str, float] | None) -> None:
        """Take a child's score; none for a child that failed or was refused."""
        if metrics and (self.best is None or metrics["val_loss_nats"] < self.best[0]):
            self.best = (metrics["val_loss_nats"], architecture)


if __name__ == "__main__":
    out = sys.argv[1] if len(sys.argv) > 1 else "runs/from_python"
    config = load_config(QUICKSTART, sys.argv[2:])
    run(config, out=out, only=("data", "train"))
    search(out, searcher=Climber(config.space.build(), seed=config.seed))
    print(load_leaderboard(out).head(10).to_string())
