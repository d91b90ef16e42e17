"""Where workers can go, what is said of it, and what is said while they wait."""

import logging

import pytest

from orchestrator.on_ray.placement import (
    QUIET_S,
    SAY_S,
    Node,
    Waits,
    describe,
    plan,
    training_resources,
    waiting,
)

HEAD = Node("10.0.0.1", {"CPU": 4.0}, {"CPU": 0.5})
TRAINER = Node("10.0.0.2", {"CPU": 8.0, "GPU": 2.0, "trainer": 1.0}, {"CPU": 6.0, "GPU": 1.0})
SPOT = Node("10.0.0.30", {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0})


@pytest.fixture
def no_autoscaler(monkeypatch):
    from orchestrator.on_ray import placement

    monkeypatch.setattr(placement.state, "get_max_resources_from_cluster_config", lambda: None)


@pytest.mark.parametrize(
    ("node", "need", "room", "slots"),
    [
        (HEAD, {"CPU": 1}, 0, 4),
        (TRAINER, {"CPU": 1, "GPU": 1}, 1, 2),
        (SPOT, {"CPU": 1, "GPU": 1}, 2, 2),
        (SPOT, {"CPU": 1, "GPU": 1, "trainer": 0.001}, 0, 0),
        (Node("a", {"CPU": 0.3}, {"CPU": 0.3}), {"CPU": 0.1}, 3, 3),
    ],
)
def test_room_is_what_is_free_and_slots_are_all(node, need, room, slots):
    assert (node.room(need), node.slots(need)) == (room, slots)


def test_training_is_kept_on_nodes_for_it_where_there_are_some(no_autoscaler):
    slot = {"CPU": 1.0, "GPU": 1.0}
    assert training_resources(slot, [HEAD, SPOT]) == slot
    need = training_resources(slot, [HEAD, SPOT, TRAINER])
    assert [node.slots(need) for node in (HEAD, SPOT, TRAINER)] == [0, 0, 2]


def test_the_plan_names_the_nodes_with_room():
    assert plan("search", "3 evaluators", {"CPU": 1, "GPU": 1}, [HEAD, TRAINER, SPOT]) == (
        "plan of search: 3 evaluators of 1 CPU, 1 GPU each\n"
        "  10.0.0.2   room for 1\n"
        "  10.0.0.30  room for 2"
    )


def test_the_plan_of_a_full_cluster_says_so():
    assert plan("train", "1 training worker", {"CPU": 1}, [HEAD]).endswith("no node has room now")


def test_a_wait_names_what_is_wanted_and_what_is_free():
    need = {"CPU": 1, "trainer": 0.001}
    assert describe(need) == "1 CPU, on a 'trainer' node"
    assert waiting("2 training workers", need, [HEAD, SPOT]) == (
        "waiting for 2 training workers of 1 CPU, on a 'trainer' node each; the cluster has room "
        "for 0 now (free: 10.0.0.1 0.5 CPU; 10.0.0.30 8 CPU)"
    )


def test_a_wait_is_said_neither_at_once_nor_too_often(caplog):
    caplog.set_level(logging.INFO)
    now = [0.0]
    waits = Waits(clock=lambda: now[0])
    said = []
    for second in range(200):
        now[0] = float(second)
        if second in range(50, 60):
            waits.over()
        else:
            waits.still(lambda: "waiting")
        if caplog.messages:
            said.append(second)
            caplog.clear()
    assert said[0] == QUIET_S
    assert all(later - sooner >= SAY_S for sooner, later in zip(said, said[1:], strict=False))
    assert 60 + QUIET_S <= said[2] <= 60 + SAY_S
