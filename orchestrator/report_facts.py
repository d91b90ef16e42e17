"""What the report says in words and tables, from the run's record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import pandas as pd

from orchestrator import search_plots
from orchestrator.leaderboard import human, write_metric
from orchestrator.report_format import big_number, nats
from orchestrator.run_record import STAGES, RunRecord
from supernet.settings import TrainSettings
from supernet.space import Architecture, SearchSpace

_SPLITS = ("train", "valid", "test")
_PALETTE = ("#CFE6F5", "#FBE0C6", "#CDEBDD", "#F3DCEA", "#F8F0B0", "#D9D9F3", "#E3E3E3", "#F6D0CC")


def describe_result(record: RunRecord) -> str:
    """The run in one sentence, as far as it has come."""
    best, baseline = record.model("best"), record.model("baseline")
    if best and best.get("test_loss_nats") is not None:
        return _describe_final(best, baseline, record.run.get("comparison") or {})
    if not record.leaderboard.empty:
        first, metric = record.leaderboard.iloc[0], record.objectives.first
        size = f" and {human(first['num_params'])} parameters" if "num_params" in first else ""
        return (
            f"The best of {len(record.leaderboard):,} child models scored so far has a "
            f"{search_plots.title(metric)} of {write_metric(metric, first[metric])}{size}; it has "
            f"not been retrained yet."
        )
    if not record.train.empty:
        last = record.train.iloc[-1]
        return (
            f"The super-net has been trained for {int(last['step']):,} steps, to a train loss of "
            f"{nats(last['loss_nats'])} nats; no child model has been scored yet."
        )
    return "The super-net has not been trained yet."


def _describe_final(
    best: Mapping[str, Any], baseline: Mapping[str, Any] | None, comparison: Mapping[str, Any]
) -> str:
    loss = float(best["test_loss_nats"])
    reached = f"The best child has a test loss of {loss:.3f} nats"
    size = f"{human(best.get('num_params'))} parameters"
    if not baseline or baseline.get("test_loss_nats") is None:
        return f"{reached} and {size}; the baseline has not been trained yet."
    other = float(baseline["test_loss_nats"])
    if f"{loss:.3f}" == f"{other:.3f}":
        against = "the same as the baseline's"
    else:
        word = "below" if loss < other else "above"
        against = f"{abs(loss - other):.3f} nats {word} the baseline's {other:.3f}"
    end = "" if comparison.get("valid", True) else " (not a valid comparison: see the notice)"
    return f"{reached}, {against}, with {size} against {human(baseline.get('num_params'))}{end}."


def unfinished_stages(record: RunRecord) -> list[str]:
    """Stages that have not finished; the report's own is left out, for it is under way."""
    done = record.run.get("stages") or {}
    return [name for name in STAGES if name not in done and name != "report"]


def describe_run(record: RunRecord) -> list[tuple[str, str]]:
    """What was run, as names and values."""
    facts = _describe_config(record) if record.config else []
    run = record.run
    seed = run.get("seed", record.config.seed if record.config else None)
    sections = (
        ("Seed", "" if seed is None else str(seed)),
        ("Versions", _pairs(run.get("versions"))),
        ("Commit", str(run.get("commit") or "")),
        ("Machine", _pairs(run.get("machine"))),
    )
    return facts + [(name, value or "not recorded") for name, value in sections]


def _describe_config(record: RunRecord) -> list[tuple[str, str]]:
    config = record.config
    assert config is not None
    space = config.space.build()
    train, search, retrain = config.train, config.search, config.retrain
    operators = ", ".join(space.operators)
    return [
        ("Data source", str(record.data.get("source") or config.data.source)),
        (
            "Search space",
            f"{len(space.layers)} layers of {len(space.operators)} candidate operators "
            f"({operators}): {big_number(space.size)} child models; hidden size "
            f"{config.space.hidden_size}",
        ),
        ("Path sampler", _plugin(train.sampler)),
        ("Alignment", _alignment(train)),
        ("Super-net training", _recipe(train)),
        (
            "Searcher",
            f"{_plugin(search.searcher)}; {len(record.leaderboard):,} child models scored of "
            f"{search.candidates:,} asked for, on {search.valid_sequences:,} valid sequences",
        ),
        ("Limits", search.limits or "none"),
        (
            "Stand-alone training",
            f"{_recipe(retrain)}; best, baseline and {retrain.controls} random "
            f"{'control' if retrain.controls == 1 else 'controls'}",
        ),
    ]


@dataclass(frozen=True)
class SplitFacts:
    """One line of the data table; None where the summary does not say."""

    name: str
    documents: float | None
    sequences: float | None
    tokens: float | None
    overlap: float | None
    unigram_nats: float | None


def describe_data(summary: Mapping[str, Any]) -> list[SplitFacts]:
    """The data table; nothing where the data has not been prepared."""
    if not summary:
        return []
    columns = ("num_documents", "num_sequences", "num_tokens", "overlap_8gram", "unigram_nats")
    return [
        SplitFacts(split, *(_of_split(summary.get(name), split) for name in columns))
        for split in _SPLITS
    ]


@dataclass(frozen=True)
class Block:
    """An operator in the drawing of an architecture."""

    name: str
    settings: str
    colour: str


def describe_layers(record: RunRecord) -> list[tuple[Block | None, Block | None]]:
    """For each layer from the stem on: the best child's operator and the baseline's."""
    best, baseline = record.model("best"), record.model("baseline")
    chosen = best["architecture"] if best else best_of(record.leaderboard)
    if chosen is None:
        return []
    left = Architecture.parse(chosen).operators
    right = Architecture.parse(baseline["architecture"]).operators if baseline else ()
    space = space_of(record)
    order = list(dict.fromkeys([*(space.operators if space else ()), *left, *right]))
    blocks = {name: _block(name, order.index(name), space) for name in order}
    return [(blocks.get(a or ""), blocks.get(b or "")) for a, b in zip_longest(left, right)]


def _block(name: str, number: int, space: SearchSpace | None) -> Block:
    spec = space.operators.get(name) if space else None
    settings = ", ".join(f"{key} {value}" for key, value in spec.settings) if spec else ""
    kind = f"{spec.kind}: " if spec and settings and spec.kind != name else ""
    plain = spec is not None and spec.kind == "identity"
    colour = "transparent" if plain else _PALETTE[number % len(_PALETTE)]
    return Block(name, (kind + settings).replace("_", " "), colour)


def best_of(board: pd.DataFrame) -> str | None:
    return None if board.empty else str(board["architecture"].iloc[0])


def space_of(record: RunRecord) -> SearchSpace | None:
    return record.config.space.build() if record.config else None


def _of_split(value: Any, split: str) -> float | None:
    number = value.get(split) if isinstance(value, Mapping) else None
    return number if isinstance(number, int | float) else None


def _plugin(settings: Mapping[str, Any]) -> str:
    others = _pairs({key: value for key, value in settings.items() if key != "name"})
    return str(settings.get("name", "not named")) + (f" ({others})" if others else "")


def _alignment(settings: TrainSettings) -> str:
    align = settings.align
    if align is None or not align.weight:
        return "none"
    layers = "all layers" if align.layers is None else f"layers {_plain(align.layers)}"
    return (
        f"MAGIC-A with λ {align.weight:g} on {layers}, from step "
        f"{round(align.start * settings.steps):,} on"
    )


def _recipe(settings: Any) -> str:
    return (
        f"{settings.steps:,} steps of {settings.batch_size} sequences, learning rate "
        f"{settings.learning_rate:g} ({settings.schedule}), {settings.precision}"
    )


def _pairs(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in (values or {}).items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_plain, value)) or "none"
    return str(value)
