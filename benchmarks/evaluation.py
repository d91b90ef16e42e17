"""Children scored per second, over a plain loop that runs the dev set for one child at a time.

    python -m benchmarks.evaluation [--quick]

Three sets of 64 children: a generation of the evolution searcher at its defaults, random ones, and
a child with its one-operator neighbours (as many as it has). The plain loop, our scoring as a tree,
and the bound take turns in one process on the same threads, batches and head. The bound runs
nothing but the operators of the distinct prefixes and the heads, straight through. `speedup` is the
plain loop's time over ours, `bound` its time over the bound's, `fraction_of_bound` the bound's time
over ours; each the median over the turns. `peak_memory_gib` is that of the process, by space.
"""

import argparse
import json
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import write_record
from benchmarks.workload import (
    Text,
    operators_624_space,
    prepare_text,
    quickstart_space,
    supernet,
)
from evaluators.prefix_tree import Prefix, evaluate_together, prefix_tree
from orchestrator.searchers import RegularizedEvolution
from supernet.data.masking import Batch
from supernet.loss import evaluate, padding_mask, tally
from supernet.model import SuperNet
from supernet.space import Architecture, SearchSpace

SEED = 0
CHILDREN = 64
EVOLVED = 300
"""Candidates that the evolution has been told before its generation is taken."""
SPACES = {"quickstart": (quickstart_space, 128), "operators_624": (operators_624_space, 64)}
"""Name to the space and its width; the first is what the JSON's first level reports."""


def generation(space: SearchSpace, count: int) -> list[Architecture]:
    """The evolution searcher's next children, under a random additive score of operators."""
    rng = random.Random(SEED)
    worth = {(layer, name): rng.gauss(0, 1) for layer, n in enumerate(space.layers) for name in n}
    searcher = RegularizedEvolution(space, seed=SEED)
    for _ in range(EVOLVED):
        child = searcher.ask()
        score = sum(worth[key] for key in enumerate(child.operators)) + rng.gauss(0, 0.5)
        searcher.tell(child, {"val_loss_nats": score})
    return [searcher.ask() for _ in range(count)]


def random_children(space: SearchSpace, count: int) -> list[Architecture]:
    """Uniform children."""
    rng = random.Random(SEED)
    return [space.sample(rng) for _ in range(count)]


def neighbours(space: SearchSpace, count: int) -> list[Architecture]:
    """A child and every child that differs from it in one operator; `count` of them at most."""
    rng = random.Random(SEED)
    child = space.sample(rng)
    found = [child, *space.neighbours(child)]
    return found if len(found) <= count else [child, *rng.sample(found[1:], count - 1)]


SETS: dict[str, Callable[[SearchSpace, int], list[Architecture]]] = {
    "generation": generation,
    "random": random_children,
    "neighbours": neighbours,
}


def plain_loop(model: SuperNet, children: Sequence[Architecture], batches: Sequence[Batch]) -> None:
    """What scoring one child after the other costs."""
    for child in children:
        evaluate(model, child, batches)


def distinct_prefixes(model: SuperNet, tree: Prefix) -> Callable[[Sequence[Batch]], None]:
    """A program of the tree's operators and heads alone."""
    program: list[tuple[torch.nn.Module, int, int]] = []

    def compile_(node: Prefix) -> None:
        for longer in node.longer:
            operator = model.operator(longer.layer, longer.operator)
            program.append((operator, longer.layer, bool(longer.ends)))
            compile_(longer)

    compile_(tree)
    states: dict[int, torch.Tensor] = {}

    def run(batches: Sequence[Batch]) -> None:
        with torch.no_grad():
            for batch in batches:
                mask_BT = padding_mask(batch)
                states[0] = model.stem(batch.input_ids_BT)
                for operator, layer, heads in program:
                    states[layer + 1] = operator(states[layer], mask_BT)
                    if heads:
                        tally(model.predict(states[layer + 1], batch.masked_N), batch)

    return run


def measure(
    model: SuperNet, children: list[Architecture], batches: list[Batch], *, turns: int
) -> dict[str, Any]:
    """The three ratios of a set of children, with their quartiles."""
    tree = prefix_tree(children)
    bound = distinct_prefixes(model, tree)
    tasks: dict[str, Callable[[], object]] = {
        "plain": lambda: plain_loop(model, children, batches),
        "ours": lambda: evaluate_together(model, children, batches),
        "bound": lambda: bound(batches),
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    ratios = {
        "speedup": _ratios(seconds["plain"], seconds["ours"]),
        "bound": _ratios(seconds["plain"], seconds["bound"]),
        "fraction_of_bound": _ratios(seconds["bound"], seconds["ours"]),
    }
    return {
        "children": len(children),
        "prefixes": sum(1 for _ in tree.nodes()) - 1,
        "layers": len(children) * len(children[0]),
        "live_states": tree.live,
        "children_per_s": len(children) / statistics.median(seconds["ours"]),
        **{name: statistics.median(values) for name, values in ratios.items()},
        "quartiles": {
            name: statistics.quantiles(values, n=4)[::2] if turns > 1 else values * 2
            for name, values in ratios.items()
        },
    }


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _space(name: str, text: Text, quick: bool) -> dict[str, Any]:
    """All sets of one space, in a process of its own, so that its peak memory is its own."""
    torch.set_num_threads(1)
    make_space, width = SPACES[name]
    space = make_space(width)
    model = supernet(space, text, hidden_size=width, seed=SEED).eval()
    batches = text.batches(batch_size=64, seed=SEED)
    dev = [batches.at(0)]  # every batch of a dev set costs the same
    found: dict[str, Any] = {}
    for label, children in SETS.items():
        chosen = children(space, 16 if quick else CHILDREN)
        found[label] = measure(model, chosen, dev, turns=2 if quick else 5)
        print(_line(name, label, found[label]), flush=True)
    found["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def run(*, quick: bool) -> dict[str, Any]:
    """Measure every set of every space."""
    with tempfile.TemporaryDirectory() as folder:
        text = prepare_text(Path(folder) / "data", vocab_size=4096, length=64)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            spaces = {name: pool.apply(_space, (name, text, quick)) for name in SPACES}
    first = spaces["quickstart"]
    return {
        **{
            ratio: {label: first[label][ratio] for label in SETS}
            for ratio in ("speedup", "bound", "fraction_of_bound")
        },
        "peak_memory_gib": first["peak_memory_gib"],
        "spaces": spaces,
        "text": text.source,
        "quick": quick,
    }


def _line(space: str, label: str, row: dict[str, Any]) -> str:
    low, high = row["quartiles"]["fraction_of_bound"]
    return (
        f"{space:<14} {label:<11} {row['prefixes']:>5} of {row['layers']:>5} operators  "
        f"{row['speedup']:5.2f}x plain  bound {row['bound']:5.2f}x  "
        f"{row['fraction_of_bound']:.2f} of it ({low:.2f}-{high:.2f})  "
        f"{row['children_per_s']:6.1f} children/s"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer children and turns")
    results = run(quick=parser.parse_args().quick)
    if not results["quick"]:
        write_record("evaluation", results, seeds={"children": SEED, "weights": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
