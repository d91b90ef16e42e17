"""Which nodes have fallen silent: a look at each one's raylet every second, over TCP.

Ray itself takes about a minute to declare a node dead whose host lost its power or its network;
until then calls to it just wait. What Ray has declared dead is none of this module's business.
Imports nothing heavy.
"""

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import ray

Address = tuple[str, int]

LOOK_S = 1.0
SILENT_S = 5.0
LEAST_LOOKS = 3
"""In vain, before a node counts as silent: this process itself may have stood still."""
LOOKS_AT_ONCE = 64

logger = logging.getLogger(__name__)


class Silence:
    """Who has not answered for `SILENT_S`; pure bookkeeping."""

    def __init__(self) -> None:
        self._heard: dict[str, float] = {}
        self._in_vain: Counter[str] = Counter()
        self._silent: frozenset[str] = frozenset()

    def take(self, answered: Mapping[str, bool], *, now: float) -> None:
        """Take one look at all nodes; those that are not in it are forgotten."""
        self._heard = {
            node: now if answers else self._heard.get(node, now)
            for node, answers in answered.items()
        }
        self._in_vain = Counter(
            {node: self._in_vain[node] + 1 for node, answers in answered.items() if not answers}
        )
        self._silent = frozenset(
            node
            for node, looks in self._in_vain.items()
            if looks >= LEAST_LOOKS and now - self._heard[node] >= SILENT_S
        )

    def __contains__(self, node: object) -> bool:
        return node in self._silent


class Watch:
    """Looks at the nodes from threads, until `stop`.

    Args:
        addresses: where the nodes are that should answer, by name.
    """

    def __init__(self, addresses: Callable[[], Mapping[str, Address]]) -> None:
        self.silence = Silence()
        self._addresses = addresses
        self._known: Mapping[str, Address] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._look_on, name="silence", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def answers(self, node: str) -> bool:
        """Whether the node answers just now; not, if it is no longer one of the nodes."""
        return node in self._known and answers(self._known[node])

    def _look_on(self) -> None:
        with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as pool:
            while not self._stopped.wait(LOOK_S):
                began = time.monotonic()
                try:
                    self._known = self._addresses()
                except Exception:
                    logger.exception("cannot list the nodes; looking at those known before")
                found = pool.map(answers, self._known.values())
                self.silence.take(dict(zip(self._known, found, strict=True)), now=began)


def answers(address: Address) -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection(address, timeout=LOOK_S).close()
    except OSError:
        return False
    return True


def raylets() -> dict[str, Address]:
    """Where the raylets of the nodes listen that Ray thinks alive."""
    return {
        node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"])
        for node in ray.nodes()
        if node["Alive"]
    }
