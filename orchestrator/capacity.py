"""What a cluster has, and what its autoscaler could add: how many workers can ever work at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from supernet.errors import InvalidInput

Resources = Mapping[str, float]
"""Of one node, by Ray's names: "CPU", "GPU", and custom ones."""

TRAINER = "trainer"
"""A custom resource. Where nodes carry it, training workers go to them alone: such as machines on
demand, beside spot instances for evaluators."""


@dataclass(frozen=True)
class NodeType:
    """Workers that an autoscaler may start: what each has, as far as it is known, and how many."""

    resources: Resources
    most: int

    @property
    def is_known(self) -> bool:
        """Whether its CPUs and GPUs are known before one is there."""
        return not {"CPU", "GPU"}.isdisjoint(self.resources)


@dataclass(frozen=True)
class Autoscaler:
    """What an autoscaler may add to the head: workers of these types, `most` of all together.

    `most` is None where its limits cannot be read, as with KubeRay's.
    """

    types: tuple[NodeType, ...] = ()
    most: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Autoscaler":
        """From a cluster file as `ray up` leaves it on the head."""
        most = int(config.get("max_workers") or 0)
        head = config.get("head_node_type")
        types = [
            NodeType(
                kind.get("resources") or {},
                int(kind.get("max_workers", 0 if name == head else most)),
            )
            for name, kind in config.get("available_node_types", {}).items()
        ]
        return cls(tuple(kind for kind in types if kind.most), most)


@dataclass(frozen=True)
class Cluster:
    """What the nodes of a cluster have, the head first, and what may come.

    Args:
        part: as messages name it.
        needs_gpu: work goes to GPUs, also where this part of a cluster has none.
    """

    nodes: Sequence[Resources]
    autoscaler: Autoscaler | None = None
    part: str = "the cluster has"
    needs_gpu: bool = False

    def for_training(self) -> "Cluster":
        """The part where training may go: what carries `trainer`, if anything does."""
        types = self.autoscaler.types if self.autoscaler else ()
        able = tuple(kind for kind in types if TRAINER in kind.resources)
        if not able and not any(TRAINER in node for node in self.nodes):
            return self
        return Cluster(
            [node if TRAINER in node else {} for node in self.nodes],
            self.autoscaler and replace(self.autoscaler, types=able),
            part=f"the cluster's {TRAINER!r} nodes have",
            needs_gpu=self.use_gpu,
        )

    @property
    def num_cpus(self) -> int:
        """CPU cores now."""
        return int(sum(node.get("CPU", 0) for node in self.nodes))

    @property
    def num_gpus(self) -> int:
        """GPUs now."""
        return int(sum(node.get("GPU", 0) for node in self.nodes))

    @property
    def use_gpu(self) -> bool:
        """Whether work goes to GPUs: where there is one, or may come."""
        types = self.autoscaler.types if self.autoscaler else ()
        there = [*self.nodes, *(kind.resources for kind in types)]
        return self.needs_gpu or any(resources.get("GPU", 0) for resources in there)

    @property
    def slots(self) -> int:
        """How many processes work at a time: one per GPU, or per CPU core where there is none."""
        return self.num_gpus if self.use_gpu else self.num_cpus

    @property
    def most_slots(self) -> int | None:
        """How many may once the autoscaler has started all that it can; None if nobody knows."""
        if self.autoscaler is None:
            return self.slots
        if self.autoscaler.most is None:
            return None
        left, types = self.autoscaler.most, self.autoscaler.types
        if not all(kind.is_known for kind in types):
            return self.slots if len(self.nodes) - 1 >= left else None
        slots = self._slots_of(self.nodes[0])
        for each, most in sorted((self._slots_of(t.resources), t.most) for t in types)[::-1]:
            slots += each * min(most, left)
            left -= min(most, left)
        return max(slots, self.slots)

    @property
    def slot_resources(self) -> dict[str, float]:
        """What one such process takes."""
        return {"CPU": 1, "GPU": 1} if self.use_gpu else {"CPU": 1}

    def check(self, wanted: int | None, *, setting: str) -> None:
        """Refuse more workers than the cluster can ever have.

        Raises:
            InvalidInput: if the cluster has fewer, and its autoscaler cannot add them.
        """
        most = self.most_slots
        if wanted is None or most is None or wanted <= most:
            return
        kind = "GPUs" if self.use_gpu else "CPU cores"
        grows = f", and its autoscaler can bring it to {most}" if most > self.slots else ""
        raise InvalidInput(
            f"{setting} must be at most {most}, for {self.part} {self.num_cpus} CPU cores and "
            f"{self.num_gpus} GPUs{grows}, and one worker takes one of its {kind}, but got "
            f"{wanted}: lower it, leave it out, or add nodes"
        )

    def workers(self, wanted: int | None, *, setting: str) -> int:
        """How many processes to start: as many as wanted, or one per slot that there is now.

        Raises:
            InvalidInput: as `check`.
        """
        self.check(wanted, setting=setting)
        return wanted or max(self.slots, 1)

    def _slots_of(self, resources: Resources) -> int:
        return int(resources.get("GPU" if self.use_gpu else "CPU", 0))
