"""The evaluators of a search: started where the cluster has room, before and while the search runs.

Ray starts one that died again by itself, on another host where its own is gone, but not one whose
`__init__` raised; the fleet replaces those. The pool behind the dispatcher gives work to those that
can score and waits for none.
"""

import logging
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

import ray
from ray._private.state import actors
from ray.exceptions import RayError

from orchestrator.capacity import Resources
from orchestrator.on_ray.placement import Waits, nodes, plan, waiting
from supernet.errors import (
    CheckpointDamaged,
    InvalidInput,
    MagicNasError,
    RunConflict,
    StorageFailed,
    WorkersLost,
)

LOOK_S = 3.0
RETRY_S = 30.0
"""Before an evaluator that could not start is tried again."""
ASK_S = 10.0
"""Before an evaluator that answered is asked again whether it is still there."""
ANSWER_S = 5.0
CAUSE_CHARACTERS = 500
KINDS: dict[str, type[MagicNasError]] = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (InvalidInput, CheckpointDamaged, RunConflict, StorageFailed)
}
"""Of an error in an `__init__` Ray hands on no more than the text: by what these begin with."""

logger = logging.getLogger(__name__)


@dataclass
class _Evaluator:
    """One that was started, and what is known of it."""

    actor: Any
    answer: Any
    """What its `ready` will say; None: it has, and is not asked just now."""
    ask_at: float = 0.0
    has_started: bool = False


class Fleet:
    """As many evaluators as wanted, or one for each slot that the cluster has at the time, and one
    where it has none yet.

    Those for which there is no room stand in Ray's queue, where an autoscaler sees them.

    Args:
        start: makes the actor of an evaluator's name; need not wait for it.
        name: an evaluator's name, by its number.
        need: what one takes.
        wanted: how many; None: one per slot.
        dispatcher: is told all names.

    Raises:
        WorkersLost: on entering, if none could start; or what of ours was the cause.
    """

    def __init__(
        self,
        start: Callable[[str], Any],
        name: Callable[[int], str],
        *,
        need: Resources,
        wanted: int | None,
        dispatcher: Any,
    ) -> None:
        self._start, self._name, self._need = start, name, need
        self._wanted, self._dispatcher = wanted, dispatcher
        self._evaluators: dict[str, _Evaluator] = {}
        self._not_before: dict[str, float] = {}
        self._error: RayError | None = None
        self._waits = Waits()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="fleet", daemon=True)

    def __enter__(self) -> "Fleet":
        wanted = self._count()
        evaluators = f"{wanted} evaluator{'s' * (wanted != 1)}"
        logger.info(plan("search", evaluators, self._need, nodes()))
        try:
            while not self._look():
                if self._error and not self._evaluators:
                    raise _none_started(wanted, self._error)
                self._wait()
        except BaseException:
            self._kill()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._kill()

    def peak_activation_mib(self) -> float:
        """The most that hidden states took in one of those that answer, in MiB."""
        started = [one for one in list(self._evaluators.values()) if one.has_started]
        peaks = [one.actor.peak_activation_mib.remote() for one in started]
        done = ray.wait(peaks, num_returns=len(peaks), timeout=ANSWER_S)[0] if peaks else []
        found = [0.0]
        for peak in done:
            try:
                found.append(ray.get(peak))
            except RayError:  # one that just died does not hold up the search's end
                continue
        return max(found)

    def _wait(self) -> None:
        """Until one that starts answers, but not much longer than to the next look."""
        starting = [one.answer for one in self._evaluators.values() if one.answer is not None]
        if starting:
            ray.wait(starting, timeout=LOOK_S)
        else:
            time.sleep(LOOK_S)

    def _look_on(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self._look()
            except RayError as error:
                logger.warning("cannot look after the evaluators just now: %s", error)

    def _look(self) -> int:
        """Start those for which there is room by now; says how many have started."""
        wanted = self._count()
        self._take_answers()
        self._ask_again()
        for name in map(self._name, range(wanted)):
            if name not in self._evaluators and time.monotonic() >= self._not_before.get(name, 0.0):
                actor = self._start(name)
                self._evaluators[name] = _Evaluator(actor, actor.ready.remote())
        able = ray.get(self._dispatcher.use.remote(list(self._evaluators)))
        if able < wanted:
            missing = f"{wanted - able} of {wanted} evaluators"
            self._waits.still(lambda: waiting(missing, self._need, nodes()))
        else:
            self._waits.over()
        return sum(one.has_started for one in self._evaluators.values())

    def _take_answers(self) -> None:
        for name, answer in list(self._answers()):
            one = self._evaluators[name]
            one.answer = None
            try:
                ray.get(answer)
                one.has_started, one.ask_at = True, time.monotonic() + ASK_S
            except RayError as error:  # Ray may be about to start it again
                if _is_dead(one.actor):
                    self._drop(name, error)

    def _answers(self) -> Iterator[tuple[str, Any]]:
        """What those say that answered; an evaluator that is busy or out of reach just has not."""
        asked = {one.answer: name for name, one in self._evaluators.items()}
        asked.pop(None, None)
        done = ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []
        return ((asked[answer], answer) for answer in done)

    def _ask_again(self) -> None:
        for one in self._evaluators.values():
            if one.answer is None and time.monotonic() >= one.ask_at:
                one.answer = one.actor.ready.remote()

    def _drop(self, name: str, error: RayError) -> None:
        """Make room for another of this name, some time later."""
        logger.warning("an evaluator could not start, trying again: %s", _in_a_line(error))
        self._error = error
        self._not_before[name] = time.monotonic() + RETRY_S
        ray.kill(self._evaluators.pop(name).actor)  # or Ray would keep its name

    def _count(self) -> int:
        return self._wanted or max(1, sum(node.slots(self._need) for node in nodes()))

    def _kill(self) -> None:
        for one in self._evaluators.values():
            ray.kill(one.actor)


def _is_dead(actor: Any) -> bool:
    """Whether Ray will not start it again; the errors of calls to it do not tell for sure."""
    return bool(actors(actor._actor_id.hex()).get("State", "DEAD") == "DEAD")


def _none_started(wanted: int, error: RayError) -> MagicNasError:
    cause = _in_a_line(error)
    kind = KINDS.get(cause.partition(":")[0], WorkersLost)
    return kind(
        f"an evaluator must start, but none of {wanted} could: {cause}; the scores so far are "
        f"kept: mend the cause, and the same command goes on"
    )


def _in_a_line(error: RayError) -> str:
    """What stands below the traceback, or whatever is set in, that Ray puts first."""
    lines = str(error).rstrip().splitlines()
    last = list(takewhile(lambda line: not line.startswith((" ", "\t")), reversed(lines)))
    return textwrap.shorten(" ".join(reversed(last)), CAUSE_CHARACTERS, placeholder=" …")
