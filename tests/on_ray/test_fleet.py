"""Evaluators that fail to start, die for good or have no room yet; and how their loss is told."""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    RuntimeEnvSetupError,
)

from orchestrator.on_ray import fleet as fleet_module
from orchestrator.on_ray import placement
from orchestrator.on_ray.cluster import connect
from orchestrator.on_ray.dispatcher import DispatcherActor, RayEvaluator
from orchestrator.on_ray.fleet import Fleet
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, MagicNasError, WorkersLost

LIMIT_S = 60.0
LOSSES = [
    OutOfMemoryError("the node was running low on memory"),
    ActorUnschedulableError("its node is gone"),
    RuntimeEnvSetupError("no such package"),
    ObjectLostError("0" * 56, None, ""),
    ActorUnavailableError("restarting", None),
    ActorDiedError(),
]


class Handle:
    """An actor's handle: each call takes the next of `answers`, which may be an error."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    @property
    def ready(self) -> "Handle":
        return self

    score_together = ready

    def remote(self, *_: Any) -> "Handle":
        return self

    def future(self) -> "Future[Any]":
        future: Future[Any] = Future()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)
        return future

    def __await__(self) -> Any:
        return asyncio.wrap_future(self.future()).__await__()


class Nodes:
    """A watch of nodes that all answer, but for those that are `lost`."""

    def __init__(self) -> None:
        self.silence: set[str] = set()
        self.lost: set[str] = set()

    def answers(self, node: str) -> bool:
        return node not in self.lost


class Restarts:
    """Counts them, as the metrics do."""

    restarts = 0

    def given_out(self, _: Any) -> Any:
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def count(self, _: Any) -> None: ...

    def count_restart(self) -> None:
        self.restarts += 1


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes an evaluator whose actors, found by name one after the other, answer so."""
    monkeypatch.setattr("orchestrator.on_ray.dispatcher.AGAIN_S", 0.0)

    def make(*actors: Handle) -> Any:
        found = iter(actors)
        monkeypatch.setattr(ray, "get_actor", lambda _: next(found))
        one = RayEvaluator("name", Restarts(), Nodes())  # type: ignore[arg-type]
        return one, one._metrics, one._watch

    return make


async def score_and_begin_again(one: RayEvaluator) -> str:
    await one.ready()
    try:
        await one.score_together(["child"])
    except Exception as error:
        await one.ready()
        return type(error).__name__
    return "nothing"


@pytest.mark.parametrize("error", LOSSES, ids=lambda error: type(error).__name__)
def test_whatever_ray_raises_about_an_evaluator_is_its_loss(
    evaluator: Callable[..., Any], error: RayError
) -> None:
    one, metrics, _ = evaluator(Handle("a", error, error), Handle("a"))
    assert asyncio.run(score_and_begin_again(one)) == "EvaluatorLost"
    assert metrics.restarts == 1


@pytest.mark.parametrize("cause", [KeyError("no such operator"), RayActorError()])
def test_what_the_evaluators_own_code_raises_is_no_loss(
    evaluator: Callable[..., Any], cause: Exception
) -> None:
    error = RayTaskError("score_together", "", cause, "title", 1, "ip").as_instanceof_cause()
    one, metrics, _ = evaluator(Handle("a", error, "a"))
    assert asyncio.run(score_and_begin_again(one)) == type(error).__name__
    assert metrics.restarts == 0


def test_an_evaluator_that_begins_again_elsewhere_is_counted_once(
    evaluator: Callable[..., Any],
) -> None:
    one, metrics, nodes = evaluator(Handle("a", ActorDiedError(), "b", ActorDiedError(), "c", "c"))
    nodes.lost = {"a"}
    assert asyncio.run(score_and_begin_again(one)) == "HostLost"
    assert metrics.restarts == 1, "its host was lost"
    one._actor.answers.insert(0, "b")
    assert asyncio.run(score_and_begin_again(one)) == "EvaluatorLost"
    asyncio.run(one.ready())
    assert metrics.restarts == 2, "it died, and Ray moved it"


class Scorer:
    """Cannot begin while `broken` is there, and takes its time."""

    def __init__(self, broken: str, message: str, seconds: float) -> None:
        time.sleep(seconds)
        if Path(broken).exists():
            raise (InvalidInput if "must" in message else ValueError)(message)

    def ready(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def score_together(self, architectures: list[str]) -> list[dict[str, Any]]:
        return [{"architecture": text, "pid": os.getpid()} for text in architectures]

    def pid(self) -> int:
        return os.getpid()

    def peak_activation_mib(self) -> float:
        return 1.5


class Search:
    """A fleet with its dispatcher, whose evaluators cannot begin while `broken[name]` is there."""

    def __init__(self, folder: Path) -> None:
        self.store = RunStore(folder / "run")
        self.folder = folder
        self.started: list[str] = []
        self.message, self.seconds = "no such\nscorer", 0.0
        self.actors: dict[str, Any] = {}
        self.dispatcher = DispatcherActor.options(max_concurrency=10, num_cpus=0).remote(
            self.store.uri, [], "version", None
        )

    def fleet(self, wanted: int | None, **need: float) -> Fleet:
        return Fleet(
            lambda name: self._start(name, need),
            lambda number: f"fleet-{number}",
            need=need or {"CPU": 0.1},
            wanted=wanted,
            dispatcher=self.dispatcher,
        )

    def broken(self, name: str) -> Path:
        return self.folder / name

    def _start(self, name: str, need: dict[str, float]) -> Any:
        self.started.append(name)
        self.actors[name] = (
            ray.remote(Scorer)
            .options(name=name, max_restarts=-1, num_cpus=0, resources=need)
            .remote(str(self.broken(name)), self.message, self.seconds)
        )
        return self.actors[name]

    def able(self) -> int:
        return int(ray.get(self.dispatcher.use.remote([])))

    def kill(self, name: str) -> int:
        pid = int(ray.get(self.actors[name].pid.remote()))
        os.kill(pid, signal.SIGKILL)
        return pid

    def score(self, batch_id: int) -> list[dict[str, Any]]:
        children = [f"child-{batch_id}-{number}" for number in range(8)]
        self.store.write_json(f"search/batches/{batch_id:06d}.json", {"candidates": children})
        ray.get(self.dispatcher.score_batch.remote(batch_id), timeout=LIMIT_S)
        rows: list[dict[str, Any]] = ray.get(self.dispatcher.take_rows.remote(batch_id))
        return rows


def wait_until(due: Callable[[], Any]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not due():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def search(
    cluster_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Search]:
    monkeypatch.setattr(fleet_module, "LOOK_S", 0.2)
    monkeypatch.setattr(fleet_module, "ASK_S", 0.2)
    monkeypatch.setattr(fleet_module, "RETRY_S", 1.0)
    with connect(cluster_address, user_code=str(Path(__file__).parent)):
        made = Search(tmp_path)
        yield made
        ray.kill(made.dispatcher)


@pytest.mark.ray
def test_an_evaluator_that_could_not_start_is_started_again_and_gets_work(search: Search) -> None:
    search.broken("fleet-1").touch()
    with search.fleet(2) as fleet:
        wait_until(lambda: search.started.count("fleet-1") >= 3)
        search.broken("fleet-1").unlink()
        wait_until(lambda: search.able() == 2)
        assert {row["architecture"] for row in search.score(0)} == {
            f"child-0-{number}" for number in range(8)
        }
        assert fleet.peak_activation_mib() == 1.5
    assert search.started.count("fleet-0") == 1


@pytest.mark.ray
def test_an_evaluator_that_cannot_begin_again_is_replaced(search: Search) -> None:
    with search.fleet(1):
        assert search.score(0)
        search.broken("fleet-0").touch()
        search.kill("fleet-0")
        wait_until(lambda: len(search.started) >= 2)
        search.broken("fleet-0").unlink()
        assert len(search.score(1)) == 8


@pytest.mark.ray
def test_an_evaluator_that_ray_starts_again_is_not_replaced(search: Search) -> None:
    search.seconds = 3.0
    with search.fleet(1):
        died = search.kill("fleet-0")
        rows = search.score(0)
        assert died not in {row["pid"] for row in rows} and len(rows) == 8
    assert search.started == ["fleet-0"]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("message", "kind"), [("no such\nscorer", WorkersLost), ("it must be", InvalidInput)]
)
def test_where_none_can_start_the_cause_is_told_in_a_line(
    search: Search, message: str, kind: type[Exception]
) -> None:
    search.message = message
    for number in range(2):
        search.broken(f"fleet-{number}").touch()
    with pytest.raises(MagicNasError) as found, search.fleet(2):
        pass
    assert type(found.value) is kind
    name = "ValueError" if kind is WorkersLost else "supernet.errors.InvalidInput"
    assert str(found.value) == (
        f"an evaluator must start, but none of 2 could: {name}: {message.replace(chr(10), ' ')}; "
        f"the scores so far are kept: mend the cause, and the same command goes on"
    )


@pytest.mark.ray
def test_a_search_without_a_slot_asks_for_one_says_so_and_waits_quietly(
    search: Search,
    ray_cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(placement, "QUIET_S", 0.0)
    looks: list[float] = []
    count = Fleet._count
    monkeypatch.setattr(Fleet, "_count", lambda one: looks.append(time.monotonic()) or count(one))
    fleet = search.fleet(None, slot=1.0)
    entering = threading.Thread(target=fleet.__enter__, daemon=True)
    entering.start()
    wait_until(lambda: len(looks) > 10)
    asked, said = list(search.started), caplog.text
    joined = ray_cluster.add_node(num_cpus=1, resources={"slot": 1})
    try:
        entering.join(LIMIT_S)
        assert len(search.score(0)) == 8
        fleet.__exit__(None, None, None)
    finally:
        ray_cluster.remove_node(joined)
    assert asked == search.started == ["fleet-0"]
    assert "waiting for 1 of 1 evaluators of 1 slot each" in said
    assert looks[10] - looks[1] > 8 * 0.2, "looked without a pause"
