"""`magic-nas latency`: how long children take on the target device, as a table in the run's folder.

Made before a search that limits or optimises `latency_ms`; after the search the winners are
measured whole.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from evaluators.latency import LatencyMeter, LatencyTable
from orchestrator.leaderboard import FILE, load_leaderboard
from orchestrator.lease import hold_lease
from orchestrator.runs import LATENCY, Run
from supernet.errors import InvalidInput, RunConflict
from supernet.space import Architecture

WINNERS = 10
"""The first of the leaderboard, measured whole."""


def latency(folder: str | Path, overrides: Sequence[str] = ()) -> LatencyTable:
    """Measure a run's children on a device of this machine and keep the table with the run.

    Args:
        overrides: keys of `latency`, such as "latency.device=cuda"; they are not kept.

    Raises:
        InvalidInput: if there is no such run or device, or the run has no data yet.
        RunConflict: if children were scored with another table.
    """
    run = Run.open_to_measure(folder, "latency", overrides)
    if not run.has_data:
        raise InvalidInput(
            f"latency is measured on the data's vocabulary and length, but {run.store.uri} has no "
            f"data yet: run 'magic-nas train' first"
        )
    if any("latency_ms" in row for row in run.store.rows("score")):
        raise RunConflict(
            f"{run.store.uri} has children scored with the latencies of its {LATENCY}: measure in "
            f"another run's folder, before its search"
        )
    with hold_lease(run.store):
        table = measure_latency(run)
        if run.store.exists(FILE):
            measure_winners(run, table)
    return table


def measure_latency(run: Run) -> LatencyTable:
    """Measure every operator and some random children; write the table."""
    table = _meter(run).table()
    run.store.write_json(LATENCY, table.to_dict())
    return table


def measure_winners(run: Run, table: LatencyTable) -> None:
    """Measure the first children of the leaderboard whole, and keep that with the table."""
    first = load_leaderboard(run.store.uri)["architecture"].head(WINNERS)
    measured = _meter(run).compare(table, [Architecture.parse(text) for text in first])
    winners = [asdict(child) for child in measured]
    run.store.write_json(LATENCY, {**table.to_dict(), "winners": winners})


def _meter(run: Run) -> LatencyMeter:
    return LatencyMeter(run.space, run.shape, run.config.latency, seed=run.config.seed)


def format_latency(table: LatencyTable) -> str:
    """The table for the terminal."""
    rows = [*table.operators_ms.items(), ("stem and head", table.ends_ms)]
    width = max(len(name) for name, _ in rows)
    settings = table.settings
    return "\n".join(
        [
            f"Forward pass on {table.device}, {settings['batch_size']} × "
            f"{table.sequence_length} tokens, {settings['threads']} thread(s), median of "
            f"{settings['repeats']}",
            *(f"  {name:<{width}} {ms:9.3f} ms" for name, ms in rows),
            f"A child's sum misses the measured latency of {len(table.held_out)} other random "
            f"children by {table.median_error:.1%} (median)",
        ]
    )
