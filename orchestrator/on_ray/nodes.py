"""The nodes of a cluster: what they have, what a task on each finds, whether a run can start."""

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray._private.worker import global_worker
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.capacity import Autoscaler, Resources
from orchestrator.doctor import NodeFacts, software_faults, storage_fault
from orchestrator.on_ray import node_probe
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

HEAD = "node:__internal_head__"
ANSWER_S = 90.0
"""How long a node may take to answer: the task starts a process there first."""
CACHE = "~/.cache"

cloudpickle.register_pickle_by_value(node_probe)


def nodes_now() -> list[Resources]:
    """What each live node has, the head first."""
    return [node["Resources"] for node in _alive()]


def autoscaler() -> Autoscaler | None:
    """What the cluster's autoscaler may add; None if it has none, or if the head does not say."""
    head = _alive()[0]
    address = ray.get_runtime_context().gcs_address
    (answer,) = _ask([head], node_probe.autoscaler_config, address)
    if not isinstance(answer, dict):
        return None
    return Autoscaler.of(answer) if answer else Autoscaler()


def driver_facts() -> NodeFacts:
    """The driver's own software, which the nodes' is compared with."""
    return NodeFacts("the driver", **node_probe.software())


def look_at_nodes(store: RunStore | None, *, thorough: bool) -> list[NodeFacts]:
    """What every live node says of itself, the head first.

    Args:
        store: the run's storage, to be written and read from each; None leaves that out.
        thorough: also disks, memory, devices and the compiler.
    """
    nodes = _alive()
    folders = [global_worker.node.get_session_dir_path(), CACHE] if thorough else None
    if store is None:
        answers = _ask(nodes, node_probe.look, None, folders)
    else:
        name, text = f".probe-{uuid.uuid4().hex}", uuid.uuid4().hex
        store.write_bytes(name, text.encode())
        try:
            answers = _ask(nodes, node_probe.look, (store.uri, name, text), folders)
        finally:
            store.delete(name)
    names, left = _names(nodes), {node["NodeID"] for node in _alive()}
    return [
        _facts(name, node, answer)
        for name, node, answer in zip(names, nodes, answers, strict=True)
        if node["NodeID"] in left  # the others have gone meanwhile
    ]


def check_nodes(store: RunStore) -> None:
    """Before anything is started: the same software on every node, and the storage in reach.

    Raises:
        InvalidInput: naming the first node that is not fit, and what is wrong there.
    """
    driver = driver_facts()
    for node in look_at_nodes(store, thorough=False):
        faults = [*software_faults(node, driver), storage_fault(node, store.uri)]
        if any(faults):
            raise InvalidInput("\n".join(filter(None, faults)))


def _alive() -> list[dict[str, Any]]:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return sorted(nodes, key=lambda node: (HEAD not in node["Resources"], node["NodeID"]))


def _names(nodes: Sequence[dict[str, Any]]) -> list[str]:
    """Addresses, with the beginning of the node's id where several share one."""
    often = Counter(node["NodeManagerAddress"] for node in nodes)
    names = []
    for node in nodes:
        address = node["NodeManagerAddress"]
        name = address if often[address] == 1 else f"{address}/{node['NodeID'][:6]}"
        names.append(f"{name} (head)" if HEAD in node["Resources"] else name)
    return names


def _ask(nodes: Sequence[dict[str, Any]], question: Any, *arguments: Any) -> list[Any]:
    """The answer of each node; an exception in its place where it failed or did not come."""
    task = ray.remote(question)
    asked = [
        task.options(
            name=f"probe:{question.__name__}",
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(*arguments)
        for node in nodes
    ]
    until = time.monotonic() + ANSWER_S
    return [_answer(reference, until) for reference in asked]


def _answer(reference: Any, until: float) -> Any:
    try:
        return ray.get(reference, timeout=max(until - time.monotonic(), 0.1))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return TimeoutError(f"no answer within {ANSWER_S:.0f} s")
    except ray.exceptions.RayError as error:
        return getattr(error, "cause", None) or error


def _facts(name: str, node: dict[str, Any], answer: Any) -> NodeFacts:
    if isinstance(answer, BaseException):
        text = str(answer).strip().splitlines() or [""]
        return NodeFacts(name, error=f"{type(answer).__name__}: {text[-1]}".rstrip(": "))
    has = node["Resources"]
    return NodeFacts(
        name,
        cpus=has.get("CPU", 0),
        gpus=has.get("GPU", 0),
        object_store=int(has.get("object_store_memory", 0)),
        **answer,
    )
