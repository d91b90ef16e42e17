"""A node that falls silent while children are on it, and answers again."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.on_ray.cluster import connect
from orchestrator.on_ray.dispatcher import RayEvaluator
from orchestrator.on_ray.metrics import ScoringMetrics
from orchestrator.on_ray.silence import Watch
from orchestrator.scoring_pool import ScoringPool

pytestmark = pytest.mark.ray

CHILDREN = [f"child-{number:02d}" for number in range(40)]
FROZEN_S = 12.0


class Port:
    """Where a node would answer; it can be cut."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", 0)
        self.heal()

    def heal(self) -> None:
        self._server = socket.create_server(self.address)
        self.address = self._server.getsockname()

    def cut(self) -> None:
        self._server.close()


class Scorer:
    """On the node `node`; the first call after `freeze` takes as long as the node is silent."""

    def __init__(self, node: str) -> None:
        self._node, self._frozen_s = node, 0.0

    def freeze(self, seconds: float) -> None:
        self._frozen_s = seconds

    def ready(self) -> str:
        return self._node

    def score_together(self, architectures: list[str]) -> list[dict[str, Any]]:
        time.sleep(0.1 * len(architectures) + self._frozen_s)
        self._frozen_s = 0.0
        return [{"architecture": text, "node": self._node, "error": None} for text in architectures]


@pytest.fixture
def cluster(cluster_address: str) -> Iterator[None]:
    with connect(cluster_address, user_code=str(Path(__file__).parent)):
        yield


def test_children_of_a_silent_node_go_elsewhere_at_once_and_it_works_again_when_it_answers(
    cluster: None,
) -> None:
    port, metrics = Port(), ScoringMetrics("silent")
    with socket.create_server(("127.0.0.1", 0)) as always:
        places = {"mute": port.address, "there": always.getsockname()}
        watch = Watch(lambda: places)
        actor = ray.remote(num_cpus=0)(Scorer)
        actors = {node: actor.options(name=f"on-{node}").remote(node) for node in places}
        ray.get(actors["mute"].freeze.remote(FROZEN_S))

        async def search() -> tuple[float, list[dict[str, Any]], list[dict[str, Any]]]:
            pool = ScoringPool(
                [RayEvaluator(f"on-{node}", metrics, watch) for node in places],
                failed=lambda text, error: {"architecture": text, "error": error},
            )
            scoring = asyncio.ensure_future(pool.score(CHILDREN[:20]))
            await asyncio.sleep(2.0)
            port.cut()
            began = time.monotonic()
            first = await scoring
            went_on_s = time.monotonic() - began
            port.heal()
            while pool.able < 2:
                await asyncio.sleep(0.1)
            return went_on_s, first, await pool.score(CHILDREN[20:])

        went_on_s, first, second = asyncio.run(asyncio.wait_for(search(), timeout=60))
        watch.stop()
    assert Counter(row["architecture"] for row in first) == Counter(CHILDREN[:20])
    assert {row["node"] for row in first} == {"there"}
    assert went_on_s < FROZEN_S - 1, "waited for the silent node"
    assert {row["node"] for row in second} == {"mute", "there"}
    for one in actors.values():
        with suppress(ray.exceptions.RayActorError):
            ray.kill(one)
