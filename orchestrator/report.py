"""The run's report: `report.html` and `plots/*.png`, as a pure function of the run's folder.

Last in the flow, and useful before: a section whose stage has not run says what is missing.
"""

import base64
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from orchestrator import plots, ranking_plots, ranking_summary, search_plots
from orchestrator.finetuning import table
from orchestrator.interference_plots import draw_interference
from orchestrator.interference_summary import format_estimate, headline
from orchestrator.leaderboard import (
    METRICS_SHOWN,
    NO_METRICS,
    human,
    metric_title,
    pareto_front,
    write_metric,
)
from orchestrator.objectives import hypervolume_over_time
from orchestrator.run_record import STAGES, RunRecord, read_run
from orchestrator.store import RunStore
from supernet.settings import TrainSettings
from supernet.space import SEPARATOR, Architecture, SearchSpace

_SPLITS = ("train", "valid", "test")
_PALETTE = ("#CFE6F5", "#FBE0C6", "#CDEBDD", "#F3DCEA", "#F8F0B0", "#D9D9F3", "#E3E3E3", "#F6D0CC")


def write_report(store: RunStore) -> None:
    """Write `report.html`, which holds all it shows, and its plots as files beside it.

    Raises:
        InvalidInput: if the run's folder is not there, or a file in it is damaged.
    """
    record = read_run(store)
    drawn = draw_plots(record)
    for name, png in drawn.items():
        store.write_bytes(f"plots/{name}.png", png)
    store.write_bytes("report.html", render(record, drawn).encode())


def draw_plots(record: RunRecord) -> dict[str, bytes]:
    """PNG by name, for all that the run has data for."""
    board, objectives = record.leaderboard, record.objectives
    valid, test = record.unigram_nats("valid"), record.unigram_nats("test")
    finals = [model for model in record.models if model.get("test_loss_nats") is not None]
    wanted: dict[str, tuple[bool, Callable[[], bytes]]] = {
        "supernet_loss": (
            _has_curve(record),
            partial(plots.supernet_loss, record.train, record.probe, valid),
        ),
        "anchors": (
            not record.anchor.empty,
            partial(plots.anchors, record.anchor, record.train),
        ),
        "front": (
            record.has_front,
            partial(search_plots.front, board, record.front_objectives, record.limits),
        ),
        "hypervolume": (
            record.has_front,
            lambda: search_plots.hypervolume(list(hypervolume_over_time(_losses(record)))),
        ),
        "best_so_far": (
            not board.empty,
            lambda: search_plots.best_so_far(
                [_value(row, objectives.first) for row in record.scores],
                objectives.first,
                mode=objectives.modes[0][1],
            ),
        ),
        "latency": (
            bool(record.latency),
            lambda: search_plots.latency(measured_children(record.latency)),
        ),
        "operator_frequency": (
            not board.empty,
            partial(plots.operator_frequency, top_tenth(board), _space(record)),
        ),
        "test_loss": (bool(finals), partial(plots.final_loss_bars, finals, test)),
        "retraining": (
            not record.retrain.empty,
            partial(plots.retraining_curves, record.retrain, valid),
        ),
        "ranking_scores": (
            not record.ranked.empty,
            partial(ranking_plots.ranking_scores, record.ranked),
        ),
        "ranking_taus": (
            bool(record.ranking),
            partial(ranking_plots.ranking_taus, record.ranking),
        ),
    }
    drawn = {name: draw() for name, (has_data, draw) in wanted.items() if has_data}
    return drawn | draw_interference(record.interference)


def render(record: RunRecord, drawn: Mapping[str, bytes]) -> str:
    """The page: every value is escaped, every plot is inside it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        human=human,
        nats=nats,
        percent=percent,
        duration=duration,
        breakable=breakable,
        estimate=format_estimate,
        headline=headline,
        figure=figure,
        metric=write_metric,
        spread=spread,
    )
    board = record.leaderboard
    best = record.model("best")
    return environment.get_template("report.html.j2").render(
        record=record,
        result=describe_result(record),
        unfinished=unfinished_stages(record),
        comparison=record.run.get("comparison") or {},
        facts=describe_run(record),
        splits=describe_data(record.data),
        plots={name: base64.b64encode(png).decode() for name, png in drawn.items()},
        probe_paths=sorted(record.probe.dropna()["architecture"].unique()),
        anchors=record.anchor.to_dict("records"),
        top=board.head(10).to_dict("records"),
        front=pareto_front(board, record.front_objectives) if record.has_front else board.head(0),
        front_metrics=[(name, metric_title(name)) for name in record.front_objectives.names],
        metrics=shown_metrics(board),
        hypervolume=_last(hypervolume_over_time(_losses(record))) if record.has_front else None,
        latency_median=latency_errors(record.latency),
        failed=sum(row.get("error") is not None for row in record.scores),
        best=best["architecture"] if best else _first(board),
        baseline=(record.model("baseline") or {}).get("architecture"),
        layers=describe_layers(record),
        finetuned=table.lines(record.finetuned),
        finetuned_tasks=table.tasks(record.finetuned),
        finetuned_models=table.overview(record.finetuned),
        ranking_facts=ranking_summary.describe(record.ranking) if record.ranking else "",
        ranking_table=ranking_summary.table(record.ranking) if record.ranking else [],
        versions_of_supernet=sorted(board["supernet_version"].dropna().unique()),
        stages=[(name, (record.run.get("stages") or {}).get(name) or {}) for name in STAGES],
    )


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
    chosen = best["architecture"] if best else _first(record.leaderboard)
    if chosen is None:
        return []
    left = Architecture.parse(chosen).operators
    right = Architecture.parse(baseline["architecture"]).operators if baseline else ()
    space = _space(record)
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


def top_tenth(board: pd.DataFrame) -> list[Architecture]:
    """The best tenth of the scored children, at least one."""
    count = math.ceil(len(board) / 10)
    return [Architecture.parse(text) for text in board["architecture"].head(count)]


def shown_metrics(board: pd.DataFrame) -> list[tuple[str, str]]:
    """The leaderboard's metrics that have room on the page: column and title."""
    names = [str(name) for name in board.columns if name not in NO_METRICS][:METRICS_SHOWN]
    return [(name, metric_title(name)) for name in names]


def measured_children(latency: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Children that were measured whole: random ones, and the winners of the search if any."""
    found = {"random children": latency["held_out"], "winners": latency.get("winners") or []}
    return {name: children for name, children in found.items() if children}


def latency_errors(latency: Mapping[str, Any]) -> dict[str, float]:
    """The median relative error of the prediction, by what the children are."""
    if not latency:
        return {}
    return {
        name: statistics.median(abs(c["predicted_ms"] / c["measured_ms"] - 1) for c in children)
        for name, children in measured_children(latency).items()
    }


def nats(value: float | None) -> str:
    """A loss with three decimals."""
    return "–" if _absent(value) else f"{value:.3f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "–" if _absent(value) else f"{value:.1%}".replace("%", " %")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds is None or pd.isna(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def big_number(number: int) -> str:
    """A count: 390,625 in full, from a billion on as 1.2 × 10¹⁸."""
    if number < 10**9:
        return f"{number:,}"
    exponent = len(str(number)) - 1
    raised = str(exponent).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{number // 10 ** (exponent - 1) / 10:.1f} × 10{raised}"


def spread(frame: pd.DataFrame, count: int) -> list[dict[Hashable, Any]]:
    """At most `count` lines, evenly spread, the first and the last among them."""
    places = np.unique(np.linspace(0, len(frame) - 1, min(count, len(frame))).round().astype(int))
    return frame.iloc[places].to_dict("records")


def breakable(architecture: str) -> Markup:
    """An architecture, escaped, with places where a line may break between its layers."""
    return Markup(SEPARATOR + "<wbr>").join(escape(name) for name in architecture.split(SEPARATOR))


def figure(encoded: str, text: str) -> Markup:
    """An image inside the page, with the text that stands for it."""
    return Markup('<img src="data:image/png;base64,{}" alt="{}">').format(encoded, text)


def _absent(value: float | None) -> bool:
    return value is None or bool(pd.isna(value))


def _has_curve(record: RunRecord) -> bool:
    return not (record.train["loss_nats"].dropna().empty and record.probe.dropna().empty)


def _first(board: pd.DataFrame) -> str | None:
    return None if board.empty else str(board["architecture"].iloc[0])


def _space(record: RunRecord) -> SearchSpace | None:
    return record.config.space.build() if record.config else None


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    return None if row.get("error") else row.get(metric)


def _losses(record: RunRecord) -> list[tuple[float, ...] | None]:
    """Of every child in the order of scoring, by the objectives of the front."""
    wanted = record.front_objectives
    return [
        wanted.losses(row) if all(_value(row, name) is not None for name in wanted.names) else None
        for row in record.scores
    ]


def _last(values: Iterable[float]) -> float:
    *_, last = values
    return last


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
