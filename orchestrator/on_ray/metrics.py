"""What a run shows in Ray's metrics: `ray_magic_nas_…` in Prometheus, drawn by `dashboards/`.

Every metric carries the run's name and the stage. The driver sets what it knows of progress; the
dispatcher counts children, for all of them pass through it.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ray.util.metrics import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from orchestrator.candidates import CandidateStream
    from orchestrator.runs import Run
    from orchestrator.training import ModelPlan

SUPERNET = "supernet"
"""The tag `model` while the super-net trains."""
WAITS_S = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0]
"""Boundaries of the histogram of waits."""

Row = Mapping[str, Any]
OnTraining = Callable[[dict[str, Any]], None]
OnSearch = Callable[["CandidateStream"], None]
OnRetraining = Callable[[str, dict[str, Any]], None]


def with_training(run: "Run", on_progress: OnTraining) -> OnTraining:
    """`on_progress` of super-net training that sets the metrics too."""
    metrics = _TrainingMetrics(run.store.name, "train", total=run.config.train.steps)

    def show(row: dict[str, Any]) -> None:
        if row:
            metrics.show(SUPERNET, row)
        on_progress(row)

    return show


def with_retraining(
    run: "Run", models: Sequence["ModelPlan"], on_progress: OnRetraining
) -> OnRetraining:
    """`on_progress` of stand-alone training that sets the metrics too."""
    total = sum(model.recipe.steps for model in models)
    metrics = _TrainingMetrics(run.store.name, "retrain", total=total)

    def show(name: str, row: dict[str, Any]) -> None:
        metrics.show(name, row)
        on_progress(name, row)

    return show


def with_search(run: "Run", on_progress: OnSearch) -> OnSearch:
    """`on_progress` of a search that sets the metrics too."""
    metrics = _SearchMetrics(run.store.name)

    def show(stream: "CandidateStream") -> None:
        metrics.show(stream)
        on_progress(stream)

    return show


class ScoringMetrics:
    """Children on their way to evaluators and back, as the dispatcher sees them.

    Args:
        run: the run's name.
    """

    def __init__(self, run: str) -> None:
        new = _Maker(run, "search")
        self._scored = new.counter("candidates_scored", "Children that have a score")
        self._failed = new.counter("candidates_failed", "Children that have an error")
        self._in_flight = new.gauge("candidates_in_flight", "Children at an evaluator")
        self._waits = new.histogram("queue_wait_seconds", "From batch to evaluator", WAITS_S)
        self._restarts = new.counter("evaluator_restarts", "Evaluators that began again")
        self._asked_at: dict[str, float] = {}
        self._out = 0

    def asked(self, architectures: Iterable[str]) -> None:
        """These children wait from now on."""
        self._asked_at.update(dict.fromkeys(architectures, time.monotonic()))

    @contextmanager
    def given_out(self, architectures: Sequence[str]) -> Iterator[None]:
        """These children are at an evaluator; only the first time ends a wait."""
        now = time.monotonic()
        for text in architectures:
            if text in self._asked_at:
                self._waits.observe(now - self._asked_at.pop(text))
        self._change_in_flight(len(architectures))
        try:
            yield
        finally:
            self._change_in_flight(-len(architectures))

    def count(self, rows: Sequence[Row]) -> None:
        """Count children by their rows."""
        failed = sum(row.get("error") is not None for row in rows)
        for counter, children in ((self._failed, failed), (self._scored, len(rows) - failed)):
            if children:
                counter.inc(children)

    def count_restart(self) -> None:
        """Count an evaluator that began again."""
        self._restarts.inc()

    def _change_in_flight(self, children: int) -> None:
        self._out += children
        self._in_flight.set(self._out)


class _TrainingMetrics:
    """The newest interval of each model that a stage trains."""

    GAUGES = {
        "step": ("training_step", "Steps done"),
        "loss_nats": ("training_loss_nats", "Mean loss over an interval"),
        "alignment_loss": ("training_alignment_loss", "MAGIC-A's distance to the anchor"),
        "anchor_changes": ("training_anchor_changes", "How often the anchor has changed"),
        "tokens_per_s": ("training_tokens_per_second", "Tokens per second, all workers together"),
    }

    def __init__(self, run: str, stage: str, *, total: int) -> None:
        new = _Maker(run, stage)
        self._progress, self._total = _Progress(new), total
        self._steps: dict[str, int] = {}
        self._gauges = {key: new.gauge(*what, "model") for key, what in self.GAUGES.items()}

    def show(self, model: str, row: Row) -> None:
        self._steps[model] = row["step"]
        self._progress.at(sum(self._steps.values()), self._total)
        for key, gauge in self._gauges.items():
            if key in row:
                gauge.set(row[key], tags={"model": model})


class _SearchMetrics:
    """How far a search is, and its best child."""

    def __init__(self, run: str) -> None:
        new = _Maker(run, "search")
        self._progress = _Progress(new)
        self._score = new.gauge("best_score", "Of the best child so far", "objective")
        self._child = new.gauge("best_child", "1: the best child so far", "architecture")
        self._best: str | None = None

    def show(self, stream: "CandidateStream") -> None:
        self._progress.at(stream.done, stream.total)
        if stream.best is None:
            return
        objective, best = stream.objectives.first, stream.best["architecture"]
        self._score.set(stream.best[objective], tags={"objective": objective})
        if self._best not in (None, best):
            self._child.set(0, tags={"architecture": self._best})
        self._child.set(1, tags={"architecture": best})
        self._best = best


class _Progress:
    """How much of a stage is done."""

    def __init__(self, new: "_Maker") -> None:
        self._done = new.gauge("stage_done", "Steps or children that are done")
        self._total = new.gauge("stage_total", "Steps or children in all")

    def at(self, done: int, total: int) -> None:
        self._done.set(done)
        self._total.set(total)


class _Maker:
    """Makes metrics of a run's stage."""

    def __init__(self, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}

    def counter(self, name: str, text: str) -> Counter:
        return self._tagged(Counter(f"magic_nas_{name}", text, tuple(self._tags)))

    def gauge(self, name: str, text: str, *tags: str) -> Gauge:
        return self._tagged(Gauge(f"magic_nas_{name}", text, (*self._tags, *tags)))

    def histogram(self, name: str, text: str, boundaries: list[float]) -> Histogram:
        return self._tagged(Histogram(f"magic_nas_{name}", text, boundaries, tuple(self._tags)))

    def _tagged(self, metric: Any) -> Any:
        return metric.set_default_tags(self._tags)
