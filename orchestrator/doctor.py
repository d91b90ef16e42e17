"""`magic-nas doctor`: is every node of a cluster fit for a run?

The checks are functions of what nodes say of themselves; `orchestrator/on_ray/nodes.py` asks them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 2**30
MIN_DISK, MIN_MEMORY = 5 * GIB, 1 * GIB
"""Free bytes that a node needs: for checkpoints and what Ray spills; for one worker."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeFacts:
    """What one node says of itself; sizes in bytes."""

    name: str
    error: str | None = None
    """Why it did not answer; nothing below holds then."""
    python: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    """By package; "" where it is missing."""
    source: str = ""
    """A hash of the magic-nas modules that its workers import; "" where they are missing."""
    storage: str | None = None
    """What is wrong with the run's storage from there."""
    cpus: float = 0
    gpus: float = 0
    object_store: int = 0
    torch_gpus: int | None = 0
    """None where PyTorch could not be asked."""
    disk_free: Mapping[str, int] = field(default_factory=dict)
    """By folder."""
    memory_free: int = MIN_MEMORY
    shm_size: int = 0
    shm_free: int = 0
    compiler: str | None = None
    ninja: bool = False


@dataclass(frozen=True)
class Cell:
    """What the table says of a check on a node, and what to do about it where it fails."""

    text: str
    remedies: Sequence[str] = ()


def software_faults(node: NodeFacts, driver: NodeFacts) -> list[str]:
    """What on a node is of another version than the driver's, with the remedy."""
    if node.error:
        return [_silent(node)]
    return [*_python(node, driver).remedies, *_packages(node, driver).remedies]


def storage_fault(node: NodeFacts, uri: str) -> str | None:
    """What is wrong with the run's storage from a node, with the remedy."""
    if node.error or node.storage is None:
        return None
    return (
        f"{node.name}: every node must read and write the run's folder {uri}, but {node.storage}: "
        f"mount the same file system there, mend its access, or give a storage that all reach with "
        f"--out"
    )


def _silent(node: NodeFacts) -> str:
    return (
        f"{node.name}: every node must answer, but {node.error}: see whether it still runs and has "
        f"memory left, and start Ray there again, or take it out of the cluster"
    )


def _python(node: NodeFacts, driver: NodeFacts) -> Cell:
    if node.python.split(".")[:2] == driver.python.split(".")[:2]:
        return Cell(node.python)
    remedy = (
        f"{node.name}: Python must be the driver's {driver.python}, but is {node.python}: install "
        f"the cluster's nodes alike, as cluster.yaml's setup_commands do"
    )
    return Cell(node.python, [remedy])


def _packages(node: NodeFacts, driver: NodeFacts) -> Cell:
    other = [name for name, want in driver.versions.items() if node.versions.get(name, "") != want]
    remedies = [
        f"{node.name}: {name} must be the driver's {driver.versions[name] or 'none'}, but is "
        f"{node.versions.get(name) or 'missing'}: install magic-nas there as on the driver, with "
        f"constraints.txt, and start Ray there again"
        for name in other
    ]
    if "magic-nas" not in other and node.source != driver.source:
        other.append("magic-nas' source")
        remedies.append(
            f"{node.name}: magic-nas must be of the driver's source {driver.source}, but is of "
            f"{node.source or 'none'}: install the same commit there and start Ray there again"
        )
    return Cell(f"other {', '.join(other)}" if other else "same", remedies)


def _devices(node: NodeFacts, _: NodeFacts) -> Cell:
    text = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs"
    if node.torch_gpus is None:
        remedy = (
            f"{node.name}: PyTorch must start there, but 'import torch' fails: install magic-nas "
            f"again"
        )
        return Cell(f"{text}, no torch", [remedy])
    if node.torch_gpus >= node.gpus:
        return Cell(text)
    remedy = (
        f"{node.name}: PyTorch must see the {node.gpus:g} GPUs that Ray offers, but sees "
        f"{node.torch_gpus}: install a PyTorch for its CUDA driver, or start Ray with --num-gpus "
        f"{node.torch_gpus}"
    )
    return Cell(f"{text}, torch sees {node.torch_gpus}", [remedy])


def _disk(node: NodeFacts, _: NodeFacts) -> Cell:
    remedies = [
        f"{node.name}: {folder} must have {_gib(MIN_DISK)} free, but has {_gib(free)}: make room "
        f"there, or put it on another disk"
        for folder, free in node.disk_free.items()
        if free < MIN_DISK
    ]
    return Cell(_gib(min(node.disk_free.values())), remedies)


def _memory(node: NodeFacts, _: NodeFacts) -> Cell:
    if node.memory_free >= MIN_MEMORY:
        return Cell(_gib(node.memory_free))
    remedy = (
        f"{node.name}: {_gib(MIN_MEMORY)} of memory must be free for a worker, but "
        f"{_gib(node.memory_free)} is: end what else runs there, or take a larger node"
    )
    return Cell(_gib(node.memory_free), [remedy])


def _shm(node: NodeFacts, _: NodeFacts) -> Cell:
    text = f"{_gib(node.shm_free)} of {_gib(node.shm_size)}"
    if node.shm_size >= node.object_store:
        return Cell(text)
    remedy = (
        f"{node.name}: /dev/shm must hold Ray's object store of {_gib(node.object_store)}, but has "
        f"{_gib(node.shm_size)}, so that Ray takes a slow disk: give the container a larger "
        f"--shm-size, or start Ray with a smaller --object-store-memory"
    )
    return Cell(text, [remedy])


def _compiler(node: NodeFacts, _: NodeFacts) -> Cell:
    """On CPU nodes nothing is compiled: the engine tells DeepSpeed to leave out its only kernel."""
    found = Path(node.compiler).name if node.compiler else "none"
    if not node.gpus:
        return Cell(f"{found} (not needed)")
    missing = [
        name
        for name, there in (("a C++ compiler", node.compiler), ("ninja", node.ninja))
        if not there
    ]
    remedies = [
        f"{node.name}: a GPU node needs {name}, with which DeepSpeed builds kernels when it first "
        f"uses them, but has none on its PATH: install the packages g++ and ninja-build"
        for name in missing
    ]
    return Cell(found if node.ninja else f"{found}, no ninja", remedies)


CHECKS: dict[str, Callable[[NodeFacts, NodeFacts], Cell]] = {
    "Python": _python,
    "packages": _packages,
    "devices": _devices,
    "disk free": _disk,
    "memory free": _memory,
    "/dev/shm free": _shm,
    "C++ compiler": _compiler,
}


@dataclass(frozen=True)
class Diagnosis:
    """A table with a row per node, and a sentence for each failure."""

    table: str
    remedies: Sequence[str]


def diagnose(nodes: Sequence[NodeFacts], driver: NodeFacts, *, storage: str | None) -> Diagnosis:
    """What is wrong with which node; `storage` is the run's URI if the nodes were asked for it."""
    rows, remedies = [["node", *CHECKS, *(["storage"] if storage else [])]], []
    for node in nodes:
        if node.error:
            rows.append([node.name, "NO ANSWER"])
            remedies.append(_silent(node))
            continue
        cells = [check(node, driver) for check in CHECKS.values()]
        if storage:
            fault = storage_fault(node, storage)
            cells.append(Cell("failed" if fault else "reached", [fault] if fault else []))
        rows.append([node.name, *(_write(cell) for cell in cells)])
        remedies += [remedy for cell in cells for remedy in cell.remedies]
    return Diagnosis(_table(rows), remedies)


def _write(cell: Cell) -> str:
    return f"{cell.text} (!)" if cell.remedies else cell.text


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{text:<{widths[i]}}" for i, text in enumerate(row)).rstrip() for row in rows
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def doctor(address: str | None, *, config: str | None = None, out: str | None = None) -> Diagnosis:
    """Ask every node of the cluster at `address`, or of a local one.

    Args:
        config: a configuration whose workers the cluster must be able to have.
        out: a run's folder, new or not, that every node must reach; it is left as it was.

    Raises:
        InvalidInput: if there is no such cluster or configuration, it asks for more workers than
            the cluster can have, or the folder cannot be written from here.
    """
    from orchestrator.config import load
    from orchestrator.on_ray.cluster import connect
    from orchestrator.on_ray.nodes import driver_facts, look_at_nodes
    from orchestrator.store import RunStore

    settings = load(config, []) if config else None
    store = RunStore(out) if out else None
    new = store is not None and not store.exists()
    if store:
        store.check_writable()
    with connect(address, user_code=None, name="doctor") as cluster:
        if settings:
            cluster.for_training().check(settings.train.workers, setting="train.workers")
            cluster.check(settings.search.evaluators, setting="search.evaluators")
        logger.info("asking %d node(s)", len(cluster.nodes))
        try:
            nodes = look_at_nodes(store, thorough=True)
        finally:
            if store and new:
                store.delete_if_empty()  # a run may have begun there meanwhile
    return diagnose(nodes, driver_facts(), storage=store.uri if store else None)
