"""The search but for who scores: asks the searcher, logs batches, tells scores, resumes.

A batch is logged before it is handed out, and whoever scores it keeps its rows before it is told;
so the batch log and the rows are the whole state, and a crash anywhere loses and doubles nothing.
"""

import heapq
import logging
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.limits import SAMPLE_TRIES, Limits, sample_within
from orchestrator.objectives import DEFAULT_OBJECTIVES, Objectives
from orchestrator.searchers import AskTell
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, SearchFailing
from supernet.space import Architecture, SearchSpace

if TYPE_CHECKING:
    from supernet.cost import CostModel

FOLDER = "search/batches"
ASK_TRIES = 20
"""Useless suggestions in a row before a candidate is drawn uniformly instead."""
LEAST_FAILURES = 10
"""Failed children before a search may be stopped for them."""

_FILE = re.compile(r"\d{6}\.json\Z")
_NO_METRICS = ("batch_id",)

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """Architectures to be scored together."""

    batch_id: int
    architectures: tuple[Architecture, ...]


@dataclass(frozen=True)
class _Batch:
    """What the batch log says of one batch."""

    batch_id: int
    candidates: tuple[str, ...]
    searcher: dict[str, Any] | None
    """Its state after this batch was asked."""
    told: tuple[int, ...]
    """Batches that it had been told by then."""


class CandidateStream:
    """Hands out batches of candidates and takes their scores.

    Every candidate is in the space and within the limits, and none is proposed twice. Made on a
    run's folder with a batch log, it goes on from there.

    Args:
        total: how many candidates the search has; those of earlier sittings count.
        supernet_version: of the weights; batches and rows of other versions are left alone.
        max_failed: the share of children that may fail before the search stops.

    Raises:
        InvalidInput: if no architecture can be within the limits.
    """

    def __init__(
        self,
        store: RunStore,
        space: SearchSpace,
        cost_model: "CostModel | None",
        limits: Limits,
        searcher: AskTell,
        *,
        total: int,
        supernet_version: str,
        objectives: Objectives = DEFAULT_OBJECTIVES,
        max_failed: float = 1.0,
    ) -> None:
        if cost_model is not None:
            limits.check_feasible(cost_model)
        self._store = store
        self._space = space
        self._cost_model = cost_model
        self._limits = limits
        self._searcher = searcher
        self.supernet_version = supernet_version
        self.objectives = objectives
        self._max_failed = max_failed
        self._told_now = 0
        """Children told in this sitting; `_failures` are those of them that failed."""
        self._failures: list[Row] = []
        self.total = total
        """Candidates of the search; falls when it ends early."""
        self._rows: dict[str, Row] = {}
        self._log: dict[int, _Batch] = {}
        self._told: list[int] = []
        self._next_id = 0
        self._warned: set[str] = set()
        self.done = 0
        """How many candidates have a row, failed ones included."""
        self.best: Row | None = None
        """The best row by the first objective; None before the first score."""
        self._resume()

    def next_batch(self, size: int) -> Candidates | None:
        """Up to `size` new candidates, after what an earlier sitting left unscored.

        None: all candidates have been handed out.

        Raises:
            InvalidInput: if the limits leave no architecture at all.
        """
        if self._pending:
            return self._pending.pop(0)
        wanted = min(size, self.total - len(self._proposed))
        told = tuple(self._told)
        architectures: list[Architecture] = []
        while len(architectures) < wanted:
            architecture = self._ask(may_wait=bool(architectures))
            if architecture is None:
                break
            self._proposed.add(architecture)
            architectures.append(architecture)
        if not architectures:
            return None
        batch = _Batch(self._next_id, tuple(map(str, architectures)), self._state(), told)
        self._write(batch)
        return Candidates(batch.batch_id, tuple(architectures))

    def tell(self, batch_id: int, rows: list[dict[str, Any]]) -> None:
        """Tell the searcher the scores of a batch, in the batch's order.

        `rows` may lack candidates that an earlier sitting or attempt scored: they are kept.

        Raises:
            ValueError: if the batch is unknown or was told before, or a candidate has no row.
        SearchFailing: if more than `max_failed` of this sitting's children have failed.
        """
        if batch_id not in self._log or batch_id in self._told:
            raise ValueError(f"a batch is told once, after it was handed out, but got {batch_id=}")
        self._take(rows)
        if self._missing(batch_id):
            self._take(self._store.rows("score"))
        missing = self._missing(batch_id)
        if missing:
            raise ValueError(
                f"every candidate of batch {batch_id} needs a row, but {missing} have none"
            )
        self._tell(batch_id)
        self._watch_failures(batch_id)

    @property
    def rows(self) -> list[Row]:
        """The rows so far, in the order in which they were taken."""
        return list(self._rows.values())

    def top(self, count: int) -> list[Row]:
        """The best rows by the first objective."""
        scored = (row for row in self._rows.values() if not _failed(row))
        return heapq.nsmallest(count, scored, key=self._loss)

    def _resume(self) -> None:
        self._read_log()
        self._proposed = {
            Architecture.parse(text) for batch in self._log.values() for text in batch.candidates
        }
        self._take(self._store.rows("score"))
        self._restore_searcher()
        self._pending = [
            Candidates(batch_id, tuple(map(Architecture.parse, missing)))
            for batch_id in self._log
            if (missing := self._missing(batch_id))
        ]

    def _read_log(self) -> None:
        for name in self._store.names(FOLDER):
            if not _FILE.match(name):
                continue
            values = self._store.read_json(f"{FOLDER}/{name}")
            self._next_id = values["batch_id"] + 1
            if values["supernet_version"] == self.supernet_version:
                self._log[values["batch_id"]] = _Batch(
                    values["batch_id"],
                    tuple(values["candidates"]),
                    values["searcher"],
                    tuple(values["told"]),
                )

    def _restore_searcher(self) -> None:
        """Load the state after the last batch asked, then tell every batch scored since."""
        if not self._log:
            return
        last = self._log[max(self._log)]
        load = getattr(self._searcher, "load_state_dict", None)
        if last.searcher is not None and load is not None:
            try:
                load(last.searcher)
            except (KeyError, TypeError, ValueError) as error:
                raise InvalidInput(
                    f"the searcher's state in {FOLDER} must be of the same searcher, but "
                    f"{type(self._searcher).__name__} cannot load it: {error!r}; go on with the "
                    f"searcher that began this run, or begin another run"
                ) from error
            self._told = list(last.told)
        else:
            self._replay()
        for batch_id in self._log:
            if batch_id not in self._told and not self._missing(batch_id):
                self._tell(batch_id)

    def _replay(self) -> None:
        """Ask and tell a searcher that keeps no state what it was asked and told before.

        One that answers otherwise, for it takes no seed, is told the scores alone.
        """
        proposed, total, next_id = self._proposed, self.total, self._next_id
        self._proposed = set()
        try:
            for batch in self._log.values():
                for batch_id in batch.told:
                    if batch_id not in self._told:
                        self._tell(batch_id)
                self._next_id = batch.batch_id
                for text in batch.candidates:
                    asked = self._ask(may_wait=False)
                    if str(asked) != text:
                        self._diverged(asked, text)
                        return
                    self._proposed.add(Architecture.parse(text))
        finally:
            self._proposed, self.total, self._next_id = proposed, total, next_id

    def _diverged(self, asked: Architecture | None, text: str) -> None:
        if asked is not None:
            self._searcher.tell(asked, None)
        logger.warning(
            "%s proposed %s where it proposed %s before: it goes on with the scores alone",
            type(self._searcher).__name__,
            asked,
            text,
        )

    def _write(self, batch: _Batch) -> None:
        values = {
            "batch_id": batch.batch_id,
            "supernet_version": self.supernet_version,
            "candidates": list(batch.candidates),
            "searcher": batch.searcher,
            "told": list(batch.told),
        }
        try:
            self._store.write_json(f"{FOLDER}/{batch.batch_id:06d}.json", values)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"a searcher's state_dict() holds plain JSON values only, but that of "
                f"{type(self._searcher).__name__} does not: {error}"
            ) from error
        self._log[batch.batch_id] = batch
        self._next_id = batch.batch_id + 1

    def _state(self) -> dict[str, Any] | None:
        save = getattr(self._searcher, "state_dict", None)
        return None if save is None else save()

    def _ask(self, *, may_wait: bool) -> Architecture | None:
        """A new candidate within limits; None: hand out what there is.

        A searcher that waits for scores (its ask gives None) makes a batch shorter, never empty.
        """
        if len(self._proposed) >= self._space.size:
            self._end(f"all {self._space.size} architectures of the space are proposed")
            return None
        for _ in range(ASK_TRIES):
            try:
                suggestion = self._searcher.ask()
            except StopIteration:
                self._end("the searcher has no more to propose")
                return None
            if suggestion is None:
                if may_wait:
                    return None
                return self._draw("waits for scores with none of this batch proposed")
            if self._is_new(suggestion):
                return suggestion
            self._searcher.tell(suggestion, None)
        return self._draw(f"proposed nothing new within the limits {ASK_TRIES} times in a row")

    def _is_new(self, architecture: Architecture) -> bool:
        if not isinstance(architecture, Architecture):
            raise InvalidInput(
                f"a searcher's ask() gives an Architecture, but {type(self._searcher).__name__} "
                f"gave {architecture!r}"
            )
        return (
            self._space.contains(architecture)
            and architecture not in self._proposed
            and self._limits.admit(architecture, self._cost_model)
        )

    def _draw(self, reason: str) -> Architecture | None:
        if reason not in self._warned:
            self._warned.add(reason)
            logger.warning("the searcher %s: such candidates are drawn uniformly instead", reason)
        rng = random.Random(f"uniform:{self._next_id}:{len(self._proposed)}")
        drawn = sample_within(
            self._space, self._cost_model, self._limits, rng, exclude=self._proposed
        )
        if drawn is None:
            self._end(
                f"{SAMPLE_TRIES:,} uniform draws found no other architecture within the limits "
                f"({self._limits})"
            )
            return None
        return drawn

    def _end(self, reason: str) -> None:
        if not self._proposed:
            raise InvalidInput(
                f"a search needs at least one candidate, but {reason}; widen the space or the "
                f"limits"
            )
        logger.warning(
            "the search ends with %d of %d candidates: %s", len(self._proposed), self.total, reason
        )
        self.total = len(self._proposed)

    def _missing(self, batch_id: int) -> list[str]:
        return [text for text in self._log[batch_id].candidates if text not in self._rows]

    def _take(self, rows: list[dict[str, Any]]) -> None:
        """The first row of an architecture counts."""
        for row in rows:
            text = row["architecture"]
            if row["supernet_version"] != self.supernet_version or text in self._rows:
                continue
            self._rows[text] = row
            self.done += Architecture.parse(text) in self._proposed
            if not _failed(row) and (self.best is None or self._loss(row) < self._loss(self.best)):
                self.best = row

    def _loss(self, row: Row) -> float:
        return self.objectives.losses(_numbers(row))[0]

    def _tell(self, batch_id: int) -> None:
        for text in self._log[batch_id].candidates:
            self._searcher.tell(Architecture.parse(text), _metrics(self._rows[text]))
        self._told.append(batch_id)

    def _watch_failures(self, batch_id: int) -> None:
        """Count the failures of this sitting; too many of them end it."""
        rows = [self._rows[text] for text in self._log[batch_id].candidates]
        self._told_now += len(rows)
        self._failures += [row for row in rows if _failed(row)]
        count = len(self._failures)
        if count >= LEAST_FAILURES and count > self._max_failed * self._told_now:
            first = self._failures[0]
            raise SearchFailing(
                f"{count} of the {self._told_now} children scored now have failed, more than "
                f"search.max_failed {self._max_failed:g} allows; the first, "
                f"{first['architecture']}, with: {first['error']}. Their rows are kept and will "
                f"not be scored again: mend the cause and give another output folder"
            )


def _failed(row: Row) -> bool:
    return row.get("error") is not None


def _metrics(row: Row) -> dict[str, float] | None:
    """The numbers of a row; None where the child failed."""
    return None if _failed(row) else _numbers(row)


def _numbers(row: Row) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and name not in _NO_METRICS
    }
