"""When a node counts as silent, on a clock of the test's own; and looks at real sockets."""

import socket
import time

import pytest

from orchestrator.on_ray.silence import LEAST_LOOKS, LOOK_S, SILENT_S, Silence, Watch, answers


def looks(silence, answered, seconds):
    """A look a second: who answers at each; returns when `b` is silent."""
    found = []
    for now in seconds:
        silence.take({"a": True, "b": answered(now)}, now=float(now))
        assert "a" not in silence
        if "b" in silence:
            found.append(now)
    return found


def test_a_node_is_silent_after_five_seconds_without_an_answer_until_it_answers():
    silent = looks(Silence(), lambda now: not 10 < now <= 40, range(60))
    assert silent == list(range(10 + int(SILENT_S), 41))


def test_a_node_that_answers_now_and_then_is_not_silent():
    assert looks(Silence(), lambda now: now % 4 == 0, range(60)) == []


def test_when_we_stood_still_ourselves_one_look_in_vain_is_not_enough():
    silence = Silence()
    silence.take({"b": True}, now=0.0)
    for late in range(1, LEAST_LOOKS):
        silence.take({"b": False}, now=100.0 + late)
        assert "b" not in silence
    silence.take({"b": False}, now=100.0 + LEAST_LOOKS)
    assert "b" in silence


def test_a_node_that_never_answered_is_silent_after_as_long():
    silence = Silence()
    for second in range(7):
        silence.take({"b": False}, now=float(second))
        assert ("b" in silence) == (second >= SILENT_S)


def test_a_node_that_is_no_longer_known_is_forgotten():
    silence = Silence()
    for second in range(10):
        silence.take({"b": False}, now=float(second))
    assert "b" in silence
    silence.take({}, now=10.0)
    assert "b" not in silence


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_what_listens_answers_and_what_does_not_is_found_silent(listener):
    address = listener.getsockname()
    with socket.create_server(("127.0.0.1", 0)) as gone:
        nobody = gone.getsockname()
    assert answers(address) and not answers(nobody)

    watch = Watch(lambda: {"there": address, "gone": nobody})
    began = time.monotonic()
    while "gone" not in watch.silence:
        assert time.monotonic() - began < 3 * SILENT_S
        time.sleep(0.05)
    assert time.monotonic() - began >= SILENT_S
    assert "there" not in watch.silence
    assert watch.answers("there") and not watch.answers("gone") and not watch.answers("unknown")
    watch.stop()


def test_a_failing_list_of_nodes_does_not_end_the_watch(listener):
    lists = iter([{}, OSError("cut off")])
    address = listener.getsockname()

    def addresses():
        found = next(lists, {"there": address})
        if isinstance(found, Exception):
            raise found
        return found

    watch = Watch(addresses)
    time.sleep(4 * LOOK_S)
    assert watch.answers("there")
    watch.stop()
