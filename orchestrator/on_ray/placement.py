"""Where a stage's workers can go, what is shown of it before they start, and what they wait for.

Ray places them; what is here is what the user is told, and on which nodes training is kept.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray
from ray._private.state import available_resources_per_node, state

from orchestrator.capacity import TRAINER, Resources

ANY = 0.001
"""Of that resource a worker takes next to nothing: how many fit is up to CPUs and GPUs."""
QUIET_S = 10.0
"""A wait that is shorter is not spoken of."""
SAY_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """A node of the cluster: all that it has, and what of it is free."""

    address: str
    resources: Resources
    free: Resources

    def room(self, need: Resources) -> int:
        """How many workers, each of which takes `need`, fit into what is free."""
        return _fit(self.free, need)

    def slots(self, need: Resources) -> int:
        """How many fit where nothing else runs."""
        return _fit(self.resources, need)


def _fit(there: Resources, need: Resources) -> int:
    return int(min(there.get(name, 0.0) / amount + 1e-9 for name, amount in need.items()))


def nodes() -> list[Node]:
    """The nodes that Ray thinks alive."""
    free = available_resources_per_node()
    return [
        Node(node["NodeManagerAddress"], node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]


def training_resources(slot: Resources, there: Sequence[Node]) -> dict[str, float]:
    """What a training worker takes: a slot, on a node for training where the cluster has such."""
    planned = state.get_max_resources_from_cluster_config() or {}
    if planned.get(TRAINER) or any(TRAINER in node.resources for node in there):
        return {**slot, TRAINER: ANY}
    return dict(slot)


def plan(stage: str, workers: str, need: Resources, there: Sequence[Node]) -> str:
    """One short block: what the stage starts, and the nodes with room for it."""
    lines = [f"plan of {stage}: {workers} of {describe(need)} each"]
    able = [node for node in there if node.room(need)]
    width = max((len(node.address) for node in able), default=0)
    lines += [f"  {node.address:<{width}}  room for {node.room(need)}" for node in able]
    return "\n".join(lines if able else [*lines, "  no node has room now"])


def waiting(workers: str, need: Resources, there: Sequence[Node]) -> str:
    """What is waited for, and what the cluster has instead."""
    room = sum(node.room(need) for node in there)
    free = "; ".join(f"{node.address} {describe(_of(node.free, need))}" for node in there)
    return (
        f"waiting for {workers} of {describe(need)} each; the cluster has room for {room} now "
        f"(free: {free or 'no node'})"
    )


def describe(resources: Resources) -> str:
    """Such as "1 CPU, 1 GPU, on a 'trainer' node"."""
    parts = [f"{amount:g} {name}" for name, amount in resources.items() if name != TRAINER]
    if TRAINER in resources:
        parts.append(f"on a {TRAINER!r} node")
    return ", ".join(parts)


def _of(free: Resources, need: Resources) -> Resources:
    """What is free of the needed resources; a node without `trainer` is not said to be one."""
    return {name: free.get(name, 0.0) for name in need if name != TRAINER or name in free}


class Waits:
    """Says what is waited for: not at once, and not too often."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._said: float | None = None

    def over(self) -> None:
        """Nothing is waited for now."""
        self._since = None

    def still(self, message: Callable[[], str]) -> None:
        """Something is; the message is made only where it is said."""
        now = self._clock()
        if self._since is None:
            self._since = now
        quiet = self._said is not None and now - self._said < SAY_S
        if now - self._since >= QUIET_S and not quiet:
            self._said = now
            logger.info(message())
