"""`magic-nas interference`: measure interference in a run, at initialisation and its checkpoints.

Groups of children are drawn from the seed alone, so that every checkpoint is measured on the same
children and batches. Writes `interference.parquet`, `interference.json` and the report.
"""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from orchestrator.interference_summary import summarise
from orchestrator.lease import hold_lease
from orchestrator.log_lines import lines_of
from orchestrator.progress import Progress
from orchestrator.report import write_report
from orchestrator.runs import SUPERNET, Run
from orchestrator.validation import check_before_start
from supernet.checkpoint import MANIFEST, load_checkpoint
from supernet.errors import CheckpointDamaged, InvalidInput
from supernet.interference import measure_interference
from supernet.model import SuperNet
from supernet.space import Architecture, SearchSpace

ROWS, SUMMARY = "interference.parquet", "interference.json"
INITIALISATION = "initialisation"
COLUMNS = (
    "group",
    "pair",
    "path_a",
    "path_b",
    "distance",
    "layer",
    "operator",
    "kind",
    "gradient_cosine",
    "input_cosine",
    "input_neg_mse",
    "output_cosine",
    "output_neg_mse",
    "step",
    "checkpoint",
)

Group = Sequence[Architecture]


def interference(folder: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measure a run's interference, write its files and the report; returns the summary.

    Args:
        folder: the run's.
        overrides: such as "interference.groups=20"; they hold for this call and are not kept.

    Raises:
        InvalidInput: if there is no such run, it has no such checkpoint, its space has no two
            children to compare, or a setting is out of range; nothing is written then.
    """
    run = Run.open_to_measure(folder, "interference", overrides)
    check_before_start(run.config, local=True, address=None)
    groups = sample_groups(
        run.space,
        seed=run.config.seed,
        groups=run.config.interference.groups,
        children=run.config.interference.children,
    )
    checkpoints = _checkpoints(run)
    for name in checkpoints:
        _load(run, name)  # a damaged one is found before hours of measuring
    with hold_lease(run.store), lines_of(run.store.name, "interference"):
        return _measure(run, groups, checkpoints)


def _measure(run: Run, groups: Sequence[Group], checkpoints: Sequence[str]) -> dict[str, Any]:
    total = len(groups) * len(checkpoints)
    with Progress(run.store.name, "interference", total=total, unit="group") as progress:
        frame = measure_run(run, groups, checkpoints, progress.at)
    settings = run.config.interference
    summary = summarise(frame, replicates=settings.replicates, seed=run.config.seed)
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    run.store.write_bytes(ROWS, buffer.getvalue())
    run.store.write_json(SUMMARY, {"settings": settings.model_dump(mode="json"), **summary})
    write_report(run.store)
    return summary


def sample_groups(
    space: SearchSpace, *, seed: int, groups: int, children: int
) -> list[tuple[Architecture, ...]]:
    """Groups of different children: a uniform one, and others spread around it.

    The others differ from the first in 1 … layers - 1 layers, each number about equally often; in
    a small space some coincide, and a group is smaller then. A group depends on the seed and its
    number alone. Our own design: pairs at all distances at one pass per child.

    Raises:
        InvalidInput: if no two different children share a layer.
    """
    open_layers = sum(len(names) > 1 for names in space.layers)
    farthest = min(open_layers, len(space.layers) - 1)
    if farthest < 1:
        raise InvalidInput(
            f"interference is between two children that share one layer and differ in another, so "
            f"the space needs two layers and a choice, but has {len(space.layers)} layers, "
            f"{open_layers} of them with a choice: train a run with a larger space"
        )
    return [
        _group(space, random.Random(f"interference:{seed}:{number}"), children, farthest)
        for number in range(groups)
    ]


def _group(
    space: SearchSpace, rng: random.Random, children: int, farthest: int
) -> tuple[Architecture, ...]:
    base = space.sample(rng)
    distances = [1 + number * farthest // children for number in range(children)]
    others = [space.random_neighbour(base, rng, changes=distance) for distance in distances]
    return tuple(dict.fromkeys([base, *others]))


def measure_run(
    run: Run,
    groups: Sequence[Group],
    checkpoints: Sequence[str],
    on_progress: Callable[[int, str], None],
) -> pd.DataFrame:
    """A line per checkpoint, pair and shared operator, as `COLUMNS` names them.

    Raises:
        InvalidInput: if a checkpoint is damaged, or no operator with parameters is shared.
    """
    batches = run.train_batches(batch_size=run.config.interference.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    for place, checkpoint in enumerate(checkpoints):
        step, model = _load(run, checkpoint)
        model.to(device)
        for number, paths in enumerate(groups):
            measured = _rows(run.space, model, paths, batches.at(number).to(device))
            labels = {"group": number, "step": step, "checkpoint": checkpoint}
            rows += [{**row, **labels} for row in measured]
            on_progress(place * len(groups) + number + 1, checkpoint)
    if not rows:
        raise InvalidInput(
            "interference needs an operator with parameters that two children share, but the "
            "children drawn share none: raise interference.groups or interference.children"
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(
    space: SearchSpace, model: SuperNet, paths: Group, batch: Any
) -> Iterator[dict[str, Any]]:
    pairs = {pair: number for number, pair in enumerate(combinations(range(len(paths)), 2))}
    for shared in measure_interference(model, paths, batch):
        first, second = paths[shared.first], paths[shared.second]
        yield {
            **asdict(shared),
            "pair": pairs[shared.first, shared.second],
            "path_a": str(first),
            "path_b": str(second),
            "distance": first.distance(second),
            "kind": space.operators[shared.operator].kind,
        }


def _checkpoints(run: Run) -> list[str]:
    """Initialisation and all finished ones in the order of steps, or those that are asked for."""
    names = [name for name in run.store.names(SUPERNET) if name.startswith("step-")]
    kept = [name for name in names if run.store.exists(f"{SUPERNET}/{name}/{MANIFEST}")]
    if not kept:
        raise InvalidInput(
            f"interference is measured along training, but {run.store.uri} has no checkpoint of "
            f"its super-net: run 'magic-nas train', with another --out if its training is finished "
            f"already"
        )
    known = [INITIALISATION, *kept]
    wanted = run.config.interference.checkpoints or known
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InvalidInput(
            f"interference.checkpoints must be among {', '.join(known)}, but got {unknown[0]!r}: "
            f"name some of them, or leave it out for all"
        )
    return [name for name in known if name in wanted]


def _load(run: Run, checkpoint: str) -> tuple[int, SuperNet]:
    """Step and super-net; fresh weights are those that training begins with."""
    torch.manual_seed(run.config.seed)
    model = SuperNet(run.space, run.shape)
    if checkpoint == INITIALISATION:
        return 0, model
    try:
        found = load_checkpoint(run.store, f"{SUPERNET}/{checkpoint}", optimizer=False)
    except CheckpointDamaged as error:
        raise CheckpointDamaged(
            f"{error}; name others, as in --set interference.checkpoints=[{INITIALISATION}]"
        ) from None
    try:
        model.load_state_dict(dict(found.weights))
    except RuntimeError as error:
        raise InvalidInput(
            f"{checkpoint} in {run.store.uri} must be of the space in its config.yaml, but "
            f"{str(error).splitlines()[0]}: put back the configuration that it was trained with"
        ) from None
    return found.step, model
