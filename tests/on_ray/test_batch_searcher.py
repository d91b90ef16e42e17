"""How many trials Tune gets at a time; no cluster is needed for that."""

import asyncio
import multiprocessing
from types import SimpleNamespace

import pytest
import ray
from ray.tune.search import Searcher

from orchestrator.batch_size import BatchSize
from orchestrator.candidates import Candidates
from orchestrator.on_ray import dispatcher, search
from orchestrator.on_ray.search import WORTH_A_PROCESS_S, BatchSearcher
from supernet.errors import SearchFailing, StorageFailed


class Stream:
    """Hands out so many batches and notes their sizes."""

    def __init__(self, batches: int, failing: int | None = None) -> None:
        self.sizes, self.told, self._left, self._failing = [], [], batches, failing

    def next_batch(self, size):
        if len(self.sizes) == self._left:
            return None
        self.sizes.append(size)
        return Candidates(len(self.sizes) - 1, ())

    def tell(self, batch_id, rows):
        self.told.append(batch_id)
        if batch_id == self._failing:
            raise SearchFailing("most children fail")


@pytest.fixture
def searcher_of(monkeypatch):
    monkeypatch.setattr(search.ray, "get", lambda reference: reference)
    rows = SimpleNamespace(take_rows=SimpleNamespace(remote=lambda batch_id: []))

    def make(stream, *, batch_size=4, in_flight=3):
        return BatchSearcher(
            stream, rows, batch_size=batch_size, in_flight=in_flight, on_progress=lambda _: None
        )

    return make


def done(seconds: float, *, idle: bool = False) -> dict[str, object]:
    return {"time_this_iter_s": seconds, "idle": idle, "evaluators": 1, "refused": ""}


def in_flight_after(searcher: BatchSearcher, seconds: float) -> int:
    """Trials that go out after a first one of this length."""
    assert searcher.suggest("first") == {"batch_id": 0}
    assert searcher.suggest("early") is None
    searcher.on_trial_complete("first", done(seconds))
    return sum(searcher.suggest(f"t{number}") is not None for number in range(10))


def test_short_trials_follow_each_other_in_one_process(searcher_of):
    assert in_flight_after(searcher_of(Stream(100)), 0.5 * WORTH_A_PROCESS_S) == 1


def test_long_trials_go_side_by_side_up_to_the_setting(searcher_of):
    assert in_flight_after(searcher_of(Stream(100), in_flight=3), 2 * WORTH_A_PROCESS_S) == 3


def test_processes_once_started_are_kept_busy(searcher_of):
    searcher = searcher_of(Stream(100))
    in_flight_after(searcher, 2 * WORTH_A_PROCESS_S)
    searcher.on_trial_complete("t0", done(0.1))
    assert searcher.suggest("next") is not None


def test_an_open_size_grows_with_what_trials_take(searcher_of):
    stream = Stream(4)
    searcher = searcher_of(stream, batch_size=BatchSize(evaluators=1, candidates=9000, in_flight=1))
    for number, seconds in enumerate((0.1, 0.1, 9.0, 9.0)):
        searcher.suggest(f"t{number}")
        searcher.on_trial_complete(f"t{number}", done(seconds))
    assert stream.sizes == [8, 16, 32, 32]


def test_nothing_goes_out_after_a_batch_that_could_not_be_kept(searcher_of):
    searcher = searcher_of(Stream(100))
    searcher.suggest("first")
    searcher.on_trial_complete("first", None, error=True)
    assert searcher.failed == [0]
    assert searcher.suggest("next") == Searcher.FINISHED


def test_the_answer_of_a_storage_that_refuses_rows_or_batches_ends_the_search(searcher_of):
    searcher = searcher_of(Stream(9))
    searcher.suggest("t0")
    searcher.on_trial_complete("t0", done(1.0) | {"refused": "no space left: make room"})
    assert searcher.suggest("t1") == Searcher.FINISHED
    assert isinstance(searcher.stopped, StorageFailed) and "make room" in str(searcher.stopped)

    full = Stream(9)
    full.next_batch = refuse
    searcher = searcher_of(full)
    assert searcher.suggest("t0") == Searcher.FINISHED
    assert "no space left" in str(searcher.stopped)


def refuse(*_):
    raise StorageFailed("no space left")


def test_rows_that_the_storage_refuses_are_tried_again_and_then_told(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatcher, "AGAIN_S", 0.0)
    monkeypatch.setattr(dispatcher, "Watch", lambda _: None)
    one = dispatcher.Dispatcher(str(tmp_path), [], "v", None)
    one._writer = SimpleNamespace(write=refuse)
    assert asyncio.run(one._kept([{"n": 1}])) == "no space left"
    answers = iter([refuse, lambda rows: None])
    one._writer = SimpleNamespace(write=lambda rows: next(answers)(rows))
    assert asyncio.run(one._kept([{"n": 1}])) == ""


def test_a_search_that_fails_stops_and_keeps_why(searcher_of):
    searcher = searcher_of(Stream(100, failing=0))
    searcher.suggest("first")
    searcher.on_trial_complete("first", done(0.1))
    assert isinstance(searcher.stopped, SearchFailing)
    assert searcher.suggest("next") == Searcher.FINISHED


def test_tune_may_pickle_it_whatever_shows_progress(searcher_of):
    searcher = searcher_of(Stream(1))
    searcher._on_progress = multiprocessing.Queue().put
    ray.cloudpickle.dumps(searcher)


def test_when_all_are_asked_the_search_is_finished(searcher_of):
    searcher = searcher_of(Stream(1))
    searcher.suggest("first")
    searcher.on_trial_complete("first", done(0.1))
    assert searcher.suggest("next") == Searcher.FINISHED
