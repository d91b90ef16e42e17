"""What the actors of a run are called. Imports nothing heavy."""

from typing import TYPE_CHECKING, Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

if TYPE_CHECKING:
    from orchestrator.runs import Run


def actor_name(run: "Run", role: str) -> str:
    """What the dashboard calls it, and how other actors of the run find it."""
    return f"{role}:{run.store.uri}"


def actor_options(run: "Run", role: str) -> dict[str, Any]:
    """Name and restarts of an actor that takes no CPU of its own.

    An actor that may start again gets plain values only: handles among its arguments would not
    outlive the driver's memory of them.
    """
    return {"name": actor_name(run, role), "num_cpus": 0, "max_restarts": -1}


def beside_driver() -> dict[str, Any]:
    """Of an actor that the driver cannot do without: it lives on the driver's node, which is not
    lost before the driver is. A soft wish is not heeded where that node is busy.
    """
    node_id = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}
