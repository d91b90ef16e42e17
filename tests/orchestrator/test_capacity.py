"""How many workers a cluster has, and can ever have."""

import pytest

from orchestrator.capacity import Autoscaler, Cluster, NodeType
from supernet.errors import InvalidInput

HEAD = {"CPU": 0}
GPU_NODE = {"CPU": 8, "GPU": 2}
CLUSTER_FILE = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "big": {"resources": {"CPU": 8, "GPU": 2}, "max_workers": 2},
        "small": {"resources": {"CPU": 4, "GPU": 1}},
    },
}


def test_an_autoscaler_is_read_from_the_cluster_file() -> None:
    assert Autoscaler.of(CLUSTER_FILE) == Autoscaler(
        (NodeType({"CPU": 8, "GPU": 2}, 2), NodeType({"CPU": 4, "GPU": 1}, 5)), 5
    )


def test_machines_of_ones_own_are_known_once_they_are_there() -> None:
    """As `ray up` writes it for the 'local' provider: one type for the head and the others."""
    local = {
        "max_workers": 2,
        "head_node_type": "local.cluster.node",
        "available_node_types": {
            "local.cluster.node": {"resources": {}, "max_workers": 2, "min_workers": 2},
        },
    }
    assert Autoscaler.of(local).types == (NodeType({}, 2),)


@pytest.mark.parametrize(
    ("nodes", "autoscaler", "slots", "most"),
    [
        ([{"CPU": 4}, {"CPU": 2}], None, 6, 6),
        ([HEAD, GPU_NODE, GPU_NODE], None, 4, 4),
        ([HEAD], Autoscaler.of(CLUSTER_FILE), 0, 2 * 2 + 3 * 1),
        ([{"CPU": 8, "GPU": 1}], Autoscaler.of(CLUSTER_FILE), 1, 1 + 7),
        ([{"CPU": 2}], Autoscaler((NodeType({"CPU": 4}, 3),), 2), 2, 2 + 8),
        ([{"CPU": 2}], Autoscaler((NodeType({}, 2),), 2), 2, None),
        ([{"CPU": 2}, {"CPU": 4}, {"CPU": 4}], Autoscaler((NodeType({}, 2),), 2), 10, 10),
        ([{"CPU": 2}], Autoscaler(), 2, None),
    ],
)
def test_slots_now_and_at_most(
    nodes: list[dict[str, float]], autoscaler: Autoscaler | None, slots: int, most: int | None
) -> None:
    cluster = Cluster(nodes, autoscaler)
    assert (cluster.slots, cluster.most_slots) == (slots, most)


def test_work_goes_to_gpus_that_the_autoscaler_has_yet_to_start() -> None:
    cluster = Cluster([{"CPU": 4}], Autoscaler.of(CLUSTER_FILE))
    assert cluster.slot_resources == {"CPU": 1, "GPU": 1}
    assert cluster.workers(None, setting="train.workers") == 1


def test_workers_that_can_never_be_are_refused_with_what_can() -> None:
    cluster = Cluster([HEAD, GPU_NODE], Autoscaler.of(CLUSTER_FILE))
    with pytest.raises(InvalidInput) as refused:
        cluster.workers(8, setting="train.workers")
    message = str(refused.value)
    assert "train.workers must be at most 7" in message
    assert "0 CPU cores" not in message and "8 CPU cores and 2 GPUs" in message
    assert "its autoscaler can bring it to 7" in message
    assert "got 8" in message


def test_workers_that_are_yet_to_come_may_be_asked_for() -> None:
    cluster = Cluster([HEAD, GPU_NODE], Autoscaler.of(CLUSTER_FILE))
    assert cluster.workers(7, setting="train.workers") == 7
    cluster = Cluster([{"CPU": 2}], Autoscaler())
    assert cluster.workers(99, setting="train.workers") == 99


@pytest.mark.parametrize(
    ("nodes", "types", "most"),
    [
        ([{"CPU": 8, "trainer": 1}, {"CPU": 32}], None, 8),
        ([HEAD, {"CPU": 4}], (NodeType({"CPU": 8, "trainer": 1}, 2), NodeType({"CPU": 64}, 5)), 16),
        ([HEAD, {"CPU": 4}], (NodeType({"trainer": 1}, 2), NodeType({"CPU": 64}, 5)), None),
        ([{"CPU": 4, "trainer": 1}, {"CPU": 4, "GPU": 1}], None, 0),
        ([{"CPU": 4}, {"CPU": 32}], None, 36),
    ],
)
def test_training_counts_the_nodes_for_it_alone(
    nodes: list[dict[str, float]], types: tuple[NodeType, ...] | None, most: int | None
) -> None:
    cluster = Cluster(nodes, types and Autoscaler(types, 7)).for_training()
    assert cluster.most_slots == most


def test_training_that_finds_too_few_nodes_for_it_is_refused() -> None:
    cluster = Cluster([HEAD, {"CPU": 8, "trainer": 1}, {"CPU": 32}]).for_training()
    with pytest.raises(InvalidInput, match=r"at most 8, for the cluster's 'trainer' nodes have 8"):
        cluster.check(9, setting="train.workers")
