"""What the actors of a run are called. Imports nothing heavy."""

from typing import TYPE_CHECKING, Any

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
