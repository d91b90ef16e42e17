"""The candidate stream: what it hands out, and that no crash loses or doubles a candidate."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.candidates import ASK_TRIES, FOLDER, CandidateStream
from orchestrator.limits import Limits
from orchestrator.searchers import build_searcher
from orchestrator.store import RunStore
from supernet.cost import CostModel
from supernet.errors import InvalidInput, StorageFailed
from supernet.model import TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

OPERATORS = {
    "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
    "conv5": OperatorSpec.of("separable_conv", kernel_size=5),
    "wide": OperatorSpec.of("feed_forward"),
    "skip": OperatorSpec.of("identity"),
}
SPACE = SearchSpace.uniform(4, OPERATORS)
SHAPE = TextShape(
    vocab_size=20, max_length=6, pad_id=0, hidden_size=8, embedding_size=8, dropout=0.0
)
COSTS = CostModel(SPACE, SHAPE)
SEARCHERS = {
    "random": {"name": "random"},
    "evolution": {"name": "evolution", "population": 5, "sample": 3},
    "user": {"name": "test_searchers:Walk"},
    "tune": {"name": "user_searcher:Walk"},
    "tpe": {"name": "optuna", "n_startup_trials": 5},
    "nsga2": {"name": "optuna", "sampler": "nsga2", "population_size": 6},
}


class Recorded:
    """Any searcher, with what it was told besides refusals; keeps state where that does."""

    def __init__(self, inner):
        self._inner = inner
        self.told = []
        self.refused = []
        if hasattr(inner, "state_dict"):
            self.state_dict = inner.state_dict
            self.load_state_dict = inner.load_state_dict

    def ask(self):
        self._asked = self._inner.ask()
        return self._asked

    def tell(self, architecture, metrics):
        (self.refused if metrics is None else self.told).append(architecture)
        self._inner.tell(architecture, metrics)


class Scripted:
    """Proposes what it was given, then says that there is no more."""

    def __init__(self, *texts):
        self._left = [text and Architecture.parse(text) for text in texts]
        self.refused = []

    def ask(self):
        return self._left.pop(0) if self._left else next(iter(()))

    def tell(self, architecture, metrics):
        if metrics is None:
            self.refused.append(str(architecture))


def stream_of(store, searcher=None, *, space=SPACE, limits="", total=20, version="v1"):
    if searcher is None or isinstance(searcher, str):
        searcher = build_searcher(SEARCHERS[searcher or "random"], space, seed=0)
    return CandidateStream(
        store,
        space,
        CostModel(space, SHAPE),
        Limits.parse(limits),
        searcher,
        total=total,
        supernet_version=version,
    )


def loss_of(text):
    """A toy score that only depends on the child; some children fail."""
    return 1 + random.Random(text).random()


def row_of(architecture, version="v1"):
    text = str(architecture)
    fails = random.Random(text).random() < 0.1
    return {
        "architecture": text,
        "val_loss_nats": None if fails else loss_of(text),
        "num_params": COSTS.cost(architecture).num_params if len(architecture) == 4 else 0,
        "supernet_version": version,
        "error": "it broke" if fails else None,
    }


class Crash(Exception):
    """The driver dies."""


@dataclass
class Fuse:
    """Dies at the given point."""

    points_left: int

    def point(self):
        self.points_left -= 1
        if self.points_left < 0:
            raise Crash


def drive(store, searcher, fuse, *, size=4):
    """A sitting of a driver with one batch in flight, which may die after any write."""
    stream = stream_of(store, searcher)
    writer = store.row_writer("score")
    while (batch := stream.next_batch(size)) is not None:
        fuse.point()
        rows = [row_of(architecture) for architecture in batch.architectures]
        writer.write(rows[:2])
        fuse.point()
        writer.write(rows[2:])
        fuse.point()
        stream.tell(batch.batch_id, rows)
        fuse.point()
    return stream


def sit_through(store, searcher, *points):
    """Sittings that die at these points, then one that lives."""
    for count in points:
        with pytest.raises(Crash):
            drive(store, searcher, Fuse(count))
    return drive(store, searcher, Fuse(10**9))


def proposed(store):
    return [
        c for name in store.names(FOLDER) for c in store.read_json(f"{FOLDER}/{name}")["candidates"]
    ]


def scored(store):
    return [row["architecture"] for row in store.rows("score")]


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "run")


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_scores_each_candidate_once_and_tells_it_once(store, name):
    searcher = Recorded(build_searcher(SEARCHERS[name], SPACE, seed=0))
    stream = drive(store, searcher, Fuse(10**9))
    assert sorted(scored(store)) == sorted(proposed(store)) and len(set(scored(store))) == 20
    good = [row["architecture"] for row in store.rows("score") if not row["error"]]
    assert [str(architecture) for architecture in searcher.told] == good
    assert stream.done == stream.total == 20
    assert stream.best["val_loss_nats"] == min(loss_of(text) for text in good)


@pytest.mark.parametrize("point", range(0, 20, 3))
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_that_crashed_anywhere_goes_the_same_way(tmp_path, name, point):
    whole, broken = RunStore(tmp_path / "whole"), RunStore(tmp_path / "broken")
    sit_through(whole, name)
    sit_through(broken, name, point)
    assert proposed(broken) == proposed(whole)
    assert scored(broken) == scored(whole)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SEARCHERS)
def test_crashes_again_and_again_lose_and_double_nothing(store, name, step):
    with pytest.raises(Crash):
        drive(store, name, Fuse(0))
    for _ in range(40):
        try:
            drive(store, name, Fuse(step))
        except Crash:
            continue
        break
    else:
        pytest.fail("no sitting came to the end")
    assert sorted(scored(store)) == sorted(proposed(store))
    assert len(set(scored(store))) == len(scored(store)) == 20


class FullStore(RunStore):
    """Refuses the n-th file of the batch log."""

    def __init__(self, root, refused):
        super().__init__(root)
        self._refused = refused

    def write_json(self, name, value):
        if name.endswith(f"{self._refused:06d}.json"):
            raise StorageFailed("no room")
        super().write_json(name, value)


@pytest.mark.parametrize("refused", [0, 3])
def test_a_batch_that_could_not_be_logged_was_never_handed_out(tmp_path, refused):
    whole, broken = RunStore(tmp_path / "whole"), tmp_path / "broken"
    sit_through(whole, "evolution")
    with pytest.raises(StorageFailed):
        drive(FullStore(broken, refused), "evolution", Fuse(10**9))
    assert len(proposed(RunStore(broken))) == 4 * refused
    sit_through(RunStore(broken), "evolution")
    assert proposed(RunStore(broken)) == proposed(whole)


@settings(max_examples=12, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", ["evolution", "user", "nsga2"])
def test_any_order_of_batches_and_crashes_loses_and_doubles_nothing(tmp_path_factory, name, data):
    store = RunStore(tmp_path_factory.mktemp("runs") / "run")
    for _ in range(3):
        searcher = Recorded(build_searcher(SEARCHERS[name], SPACE, seed=0))
        drive_many(stream_of(store, searcher), store, data, may_crash=True)
    searcher = Recorded(build_searcher(SEARCHERS[name], SPACE, seed=0))
    last = drive_many(stream_of(store, searcher), store, data, may_crash=False)
    assert sorted(scored(store)) == sorted(proposed(store)) == sorted(set(scored(store)))
    assert last.done == 20 and len(set(searcher.told)) == len(searcher.told)
    if name == "user":
        good = {row["architecture"] for row in store.rows("score") if not row["error"]}
        assert {str(architecture) for architecture in searcher.told} == good


def drive_many(stream, store, data, *, may_crash):
    """A sitting with up to three batches in flight, which end in any order."""
    writer, flying, asking = store.row_writer("score"), [], True
    while asking or flying:
        actions = ["ask"] * (asking and len(flying) < 3) + ["end"] * bool(flying)
        action = data.draw(st.sampled_from(actions + ["crash"] * may_crash))
        if action == "crash":
            return stream
        if action == "ask":
            batch = stream.next_batch(data.draw(st.integers(1, 5)))
            flying += [batch] if batch else []
            asking = batch is not None
            continue
        batch = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        rows = [row_of(architecture) for architecture in batch.architectures]
        kept = data.draw(st.integers(0, len(rows))) if may_crash else len(rows)
        writer.write(rows[:kept])
        if kept < len(rows):
            return stream
        stream.tell(batch.batch_id, rows)
    return stream


def test_a_pending_batch_goes_out_again_without_what_was_scored(store):
    first = stream_of(store).next_batch(4)
    store.row_writer("score").write([row_of(first.architectures[1])])
    again = stream_of(store).next_batch(4)
    assert again.batch_id == first.batch_id
    assert again.architectures == (first.architectures[0], *first.architectures[2:])


def finish(stream, store, batch):
    rows = [row_of(architecture) for architecture in batch.architectures]
    store.row_writer("score").write(rows)
    stream.tell(batch.batch_id, rows)


def test_a_restored_searcher_is_told_only_what_came_after_its_state(store):
    stream = stream_of(store)
    first, second = stream.next_batch(3), stream.next_batch(3)
    finish(stream, store, second)
    stream.next_batch(3)  # its log holds a state that knows the second batch
    finish(stream, store, first)
    searcher = Recorded(build_searcher(SEARCHERS["random"], SPACE, seed=0))
    stream_of(store, searcher)
    assert searcher.told + searcher.refused == list(first.architectures)


def test_the_first_row_of_a_candidate_that_was_scored_twice_counts(store):
    architecture = stream_of(store, Scripted("skip-skip-skip-conv3")).next_batch(1).architectures[0]
    rows = [row_of(architecture) | {"val_loss_nats": loss, "error": None} for loss in (2.0, 1.0)]
    store.row_writer("score").write(rows)
    stream = stream_of(store)
    assert stream.done == 1 and stream.best["val_loss_nats"] == 2.0


def test_a_search_may_be_lengthened(store):
    sit_through(store, "evolution")
    batch = stream_of(store, "evolution", total=23).next_batch(10)
    assert len(batch.architectures) == 3 and not set(map(str, batch.architectures)) & set(
        scored(store)
    )


def test_rows_and_batches_of_other_weights_are_left_alone(store):
    before = stream_of(store, version="v0").next_batch(4)
    store.row_writer("score").write([row_of(a, "v0") for a in before.architectures])
    stream = stream_of(store)
    batch = stream.next_batch(4)
    assert stream.done == 0 and stream.best is None
    assert batch.architectures == before.architectures and batch.batch_id == 1


def test_what_is_outside_the_space_the_limits_or_repeated_is_refused_and_asked_again(store):
    searcher = Scripted(
        "skip-skip-skip-wide",  # above the limit
        "skip-skip-skip",  # too short
        "skip-skip-skip-conv9",  # not in the space
        "skip-skip-skip-conv3",
        "skip-skip-skip-conv3",  # a repeat
        "skip-skip-conv3-skip",
    )
    above = COSTS.cost(Architecture.parse("skip-skip-skip-wide")).num_params
    batch = stream_of(store, searcher, limits=f"num_params < {above}").next_batch(2)
    assert list(map(str, batch.architectures)) == ["skip-skip-skip-conv3", "skip-skip-conv3-skip"]
    assert searcher.refused == [
        "skip-skip-skip-wide",
        "skip-skip-skip",
        "skip-skip-skip-conv9",
        "skip-skip-skip-conv3",
    ]


def test_a_failed_candidate_is_told_as_such(store):
    searcher = Scripted("skip-skip-skip-conv3", "skip-skip-conv3-skip")
    stream = stream_of(store, searcher)
    batch = stream.next_batch(2)
    good, bad = (row_of(architecture) for architecture in batch.architectures)
    good |= {"val_loss_nats": 1.0, "error": None}
    bad |= {"val_loss_nats": None, "error": "it broke"}
    stream.tell(batch.batch_id, [bad, good])
    assert searcher.refused == [bad["architecture"]]
    assert stream.done == 2 and stream.best["architecture"] == good["architecture"]


def test_a_searcher_is_told_all_numbers_of_a_row_in_the_batchs_order(store):
    told = []
    searcher = Scripted("skip-skip-skip-conv3", "skip-skip-conv3-skip")
    searcher.tell = lambda architecture, metrics: told.append((str(architecture), metrics))
    stream = stream_of(store, searcher)
    batch = stream.next_batch(2)
    rows = [
        {
            "architecture": str(architecture),
            "val_loss_nats": 1.5,
            "latency_ms": number,
            "supernet_version": "v1",
            "batch_id": 0,
            "error": None,
        }
        for number, architecture in enumerate(batch.architectures)
    ]
    stream.tell(batch.batch_id, rows[::-1])
    assert told == [
        ("skip-skip-skip-conv3", {"val_loss_nats": 1.5, "latency_ms": 0.0}),
        ("skip-skip-conv3-skip", {"val_loss_nats": 1.5, "latency_ms": 1.0}),
    ]


def test_a_space_smaller_than_the_search_ends_it_early_with_a_warning(store, caplog):
    space = SearchSpace.uniform(2, {"conv3": OPERATORS["conv3"], "skip": OPERATORS["skip"]})
    stream = stream_of(store, space=space, total=20)
    assert len(stream.next_batch(16).architectures) == 4
    assert stream.next_batch(16) is None and stream.total == 4
    assert "ends with 4 of 20 candidates: all 4 architectures of the space" in caplog.text


@pytest.mark.parametrize("name", SEARCHERS)
def test_limits_that_leave_few_architectures_end_the_search_early(store, caplog, name):
    bound = COSTS.cost(Architecture.parse("skip-skip-skip-conv5")).num_params
    stream = stream_of(store, name, limits=f"num_params <= {bound}", total=20)
    found = stream.next_batch(20).architectures
    # All identities, or one convolution, of either size, in one of four layers.
    assert len(set(found)) == 9
    assert stream.next_batch(20) is None
    assert "ends with 9 of 20 candidates: 10,000 uniform draws found no other" in caplog.text


def test_limits_that_no_architecture_meets_are_refused(store):
    with pytest.raises(InvalidInput, match="smallest possible"):
        stream_of(store, limits="num_params < 5")
    with pytest.raises(InvalidInput, match="largest possible"):
        stream_of(store, limits="num_params > 10000000")
    least = COSTS.cost(COSTS.cheapest("num_params")).num_params
    with pytest.raises(InvalidInput, match="at least one candidate"):
        stream_of(store, limits=f"{least} < num_params < {least + 1}").next_batch(1)


def test_a_stuck_searcher_is_helped_out_by_uniform_candidates(store, caplog):
    stuck = Scripted(*["skip-skip-skip-skip"] * 5000)
    batch = stream_of(store, stuck).next_batch(4)
    assert len(set(batch.architectures)) == 4 and len(stuck.refused) == 3 * ASK_TRIES
    assert "nothing new within the limits 20 times in a row" in caplog.text


def test_a_searcher_that_has_no_more_ends_the_search_early(store, caplog):
    stream = stream_of(store, Scripted("skip-skip-skip-skip"))
    assert len(stream.next_batch(4).architectures) == 1
    assert stream.next_batch(4) is None
    assert "ends with 1 of 20 candidates: the searcher has no more to propose" in caplog.text


def test_a_searcher_that_waits_makes_a_shorter_batch_and_never_an_empty_one(store, caplog):
    searcher = Scripted("skip-skip-skip-skip", None, None)
    stream = stream_of(store, searcher, total=3)
    assert len(stream.next_batch(3).architectures) == 1
    assert caplog.text == ""
    assert len(stream.next_batch(1).architectures) == 1
    assert "waits for scores" in caplog.text


def test_a_tune_searcher_that_waits_for_scores_gets_them(store):
    searcher = build_searcher({"name": "user_searcher:Waiting"}, SPACE, seed=0)
    stream = stream_of(store, searcher, total=6)
    sizes = []
    while (batch := stream.next_batch(4)) is not None:
        sizes.append(len(batch.architectures))
        stream.tell(batch.batch_id, [row_of(architecture) for architecture in batch.architectures])
    assert sizes == [2, 2, 2]


@pytest.mark.parametrize("batch_id", [0, 7])
def test_a_batch_is_told_once(store, batch_id):
    stream = stream_of(store)
    batch = stream.next_batch(2)
    rows = [row_of(architecture) for architecture in batch.architectures]
    stream.tell(batch.batch_id, rows)
    with pytest.raises(ValueError, match=f"told once, .* got batch_id={batch_id}"):
        stream.tell(batch_id, rows)


def test_rows_that_the_scorer_left_out_are_read_from_the_store(store):
    stream = stream_of(store)
    batch = stream.next_batch(2)
    rows = [row_of(architecture) for architecture in batch.architectures]
    with pytest.raises(ValueError, match="needs a row"):
        stream.tell(batch.batch_id, rows[:1])
    store.row_writer("score").write(rows[1:])
    stream.tell(batch.batch_id, [])
    assert stream.done == 2


def test_a_state_that_is_no_json_is_refused_by_name(store):
    searcher = Scripted("skip-skip-skip-skip")
    searcher.state_dict = lambda: {"best": Architecture.parse("skip")}
    with pytest.raises(InvalidInput, match="plain JSON values only, but that of Scripted"):
        stream_of(store, searcher).next_batch(1)


def test_a_suggestion_that_is_no_architecture_is_refused(store):
    searcher = Scripted()
    searcher.ask = lambda: "skip-skip-skip-skip"
    with pytest.raises(InvalidInput, match="gives an Architecture, but Scripted gave 'skip-"):
        stream_of(store, searcher).next_batch(1)


def test_the_state_of_another_searcher_is_refused(store):
    drive(store, "random", Fuse(10**9))
    with pytest.raises(InvalidInput, match="RegularizedEvolution cannot load it: KeyError"):
        stream_of(store, "evolution")
