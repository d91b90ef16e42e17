"""The run's report: `report.html` and `plots/*.png`, as a pure function of the run's folder.

Last in the flow, and useful before: a section whose stage has not run says what is missing.
"""

import base64
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
from orchestrator.report_facts import (
    best_of,
    describe_data,
    describe_layers,
    describe_result,
    describe_run,
    space_of,
    unfinished_stages,
)
from orchestrator.report_format import breakable, duration, figure, nats, percent, spread
from orchestrator.run_record import STAGES, RunRecord, read_run
from orchestrator.store import RunStore
from supernet.space import Architecture


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
            partial(plots.operator_frequency, top_tenth(board), space_of(record)),
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
        best=best["architecture"] if best else best_of(board),
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


def _has_curve(record: RunRecord) -> bool:
    return not (record.train["loss_nats"].dropna().empty and record.probe.dropna().empty)


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
