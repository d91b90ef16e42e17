"""The evaluators of a search: started where the cluster has room, before and while the search runs.

Ray starts one that died again by itself, on another host where its own is gone; the pool behind the
dispatcher gives work to those that can score and waits for none.
"""

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from orchestrator.on_ray.placement import Resources, Waits, nodes, plan, waiting

LOOK_S = 3.0
RETRY_S = 30.0
"""Before an evaluator that could not start is tried again."""
ANSWER_S = 5.0

logger = logging.getLogger(__name__)


class Fleet:
    """As many evaluators as wanted, or one for each slot that the cluster has at the time.

    Those for which there is no room stand in Ray's queue, where an autoscaler sees them.

    Args:
        start: makes the actor of an evaluator's name; need not wait for it.
        name: an evaluator's name, by its number.
        need: what one takes.
        wanted: how many; None: one per slot.
        dispatcher: is told all names.

    Raises:
        RayActorError: on entering, if none could start.
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
        self._actors: dict[str, Any] = {}
        self._starting: dict[str, Any] = {}
        """The first answer of those that have given none yet."""
        self._not_before: dict[str, float] = {}
        self._error: RayActorError | None = None
        self._waits = Waits()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="fleet", daemon=True)

    def __enter__(self) -> "Fleet":
        wanted = self._count()
        evaluators = f"{wanted} evaluator{'s' * (wanted != 1)}"
        logger.info(plan("search", evaluators, self._need, nodes()))
        try:
            while not self._look():
                if self._error and not self._starting:
                    raise self._error
                ray.wait(list(self._starting.values()), timeout=LOOK_S)
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
        peaks = [actor.peak_activation_mib.remote() for actor in self._actors.values()]
        done, _ = ray.wait(peaks, num_returns=len(peaks), timeout=ANSWER_S)
        found = [0.0]
        for peak in done:
            try:
                found.append(ray.get(peak))
            except RayActorError:  # one that just died does not hold up the search's end
                continue
        return max(found)

    def _look_on(self) -> None:
        while not self._stopped.wait(LOOK_S):
            try:
                self._look()
            except RayError as error:
                logger.warning("cannot look after the evaluators just now: %s", error)

    def _look(self) -> int:
        """Start those for which there is room by now; says how many have started."""
        wanted = self._count()
        for name in map(self._name, range(wanted)):
            if name not in self._actors and time.monotonic() >= self._not_before.get(name, 0.0):
                self._actors[name] = self._start(name)
                self._starting[name] = self._actors[name].ready.remote()
        self._take_answers()
        able = ray.get(self._dispatcher.use.remote(list(self._actors)))
        if able < wanted:
            missing = f"{wanted - able} of {wanted} evaluators"
            self._waits.still(lambda: waiting(missing, self._need, nodes()))
        else:
            self._waits.over()
        return len(self._actors) - len(self._starting)

    def _take_answers(self) -> None:
        for name, answer in list(self._starting.items()):
            if not ray.wait([answer], timeout=0)[0]:
                continue
            del self._starting[name]
            try:
                ray.get(answer)
            except RayActorError as error:
                self._error = error
                logger.warning("an evaluator could not start: %s", error)
                ray.kill(self._actors.pop(name))
                self._not_before[name] = time.monotonic() + RETRY_S

    def _count(self) -> int:
        return self._wanted or sum(node.slots(self._need) for node in nodes())

    def _kill(self) -> None:
        for actor in self._actors.values():
            ray.kill(actor)
