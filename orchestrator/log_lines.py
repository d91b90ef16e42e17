"""Log lines that begin with the run's name and the stage, in the driver and in its workers.

Ray carries what workers write to the driver's stderr; `FOREIGN` keeps lines of libraries and of
users' code out of there. They stay in the worker's own log, which Ray's dashboard shows.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PACKAGES = ("orchestrator", "evaluators", "supernet")
STAGES = (
    "start",
    "data",
    "train",
    "search",
    "retrain",
    "export",
    "report",
    "rank",
    "interference",
    "finetune",
)
FOREIGN = rf"^(?!.+ (?:{'|'.join(STAGES)}): )"
"""A regular expression for a line that none of `STAGES` has written."""

_prefix = ""


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(f"{_prefix}{line}" for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """In a driver: warnings of everybody, and what our packages have to tell."""
    logging.basicConfig(level=logging.WARNING, handlers=[_handler()])
    _set_levels(logging.INFO)


def log_from_worker(run: str, stage: str, *, level: int = logging.INFO) -> None:
    """In a worker process: what our packages have to tell from this level on."""
    global _prefix
    _prefix = f"{run} {stage}: "
    _set_levels(level)
    for package in PACKAGES:
        logging.getLogger(package).handlers = [_handler()]


@contextmanager
def lines_of(run: str, stage: str) -> Iterator[None]:
    """Log lines are of this run and stage for as long as this lasts."""
    global _prefix
    before, _prefix = _prefix, f"{run} {stage}: "
    try:
        yield
    finally:
        _prefix = before


def _handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    return handler


def _set_levels(level: int) -> None:
    for package in PACKAGES:
        logging.getLogger(package).setLevel(level)
