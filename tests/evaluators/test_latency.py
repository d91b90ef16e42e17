"""The latency table: what it adds up, what it is made of, and devices that are not there."""

import time

import pytest
import torch

from evaluators.latency import LatencyMeter, LatencyTable, Measured, check_device
from supernet.errors import InvalidInput
from supernet.model import TextShape
from supernet.settings import LatencySettings
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    4,
    {
        "wide": OperatorSpec.of("feed_forward", inner_size=2048),
        "narrow": OperatorSpec.of("feed_forward", inner_size=8),
        "identity": OperatorSpec.of("identity"),
    },
)
SHAPE = TextShape(
    vocab_size=50, max_length=64, pad_id=0, hidden_size=128, embedding_size=128, dropout=0.0
)


@pytest.fixture(scope="module")
def meter() -> LatencyMeter:
    return LatencyMeter(SPACE, SHAPE, LatencySettings(repeats=15, held_out=8), seed=0)


@pytest.fixture(scope="module")
def table(meter: LatencyMeter) -> LatencyTable:
    return meter.table()


def test_a_childs_latency_is_the_sum_of_its_operators_and_the_ends(table):
    child = Architecture(("wide", "narrow", "identity", "wide"))
    parts = table.operators_ms
    expected = table.ends_ms + 2 * parts["wide"] + parts["narrow"] + parts["identity"]
    assert table.predict(child) == pytest.approx(expected)


def test_what_computes_more_takes_longer(table):
    parts = table.operators_ms
    assert set(parts) == set(SPACE.operators)
    assert parts["wide"] > 2 * parts["narrow"] > parts["identity"]


def test_children_are_compared_that_had_no_part_in_the_table(table):
    assert len(table.held_out) == 8
    for child in table.held_out:
        predicted = table.predict(Architecture.parse(child.architecture))
        assert child.predicted_ms == pytest.approx(predicted)
        assert child.measured_ms > 0


def test_the_error_is_relative_to_what_was_measured():
    children = tuple(Measured("a", 2.0, measured) for measured in (1.0, 2.0, 4.0))
    table = LatencyTable("cpu", {}, 8, 0.0, {}, children)
    assert [child.error for child in children] == [1.0, 0.0, 0.5]
    assert table.median_error == 0.5


def test_a_table_is_read_back(table):
    assert LatencyTable.from_dict(table.to_dict()) == table


def test_whole_children_are_timed_with_what_slows_them(meter, table, monkeypatch):
    forward = meter._model.head.forward

    def slow(*arguments):
        time.sleep(0.05)
        return forward(*arguments)

    monkeypatch.setattr(meter._model.head, "forward", slow)
    (child,) = meter.compare(table, [Architecture(("identity",) * 4)])
    assert child.measured_ms > 50 > child.predicted_ms


def test_the_number_of_threads_is_what_was_asked_for_and_put_back(monkeypatch):
    before, seen = torch.get_num_threads(), set()
    meter = LatencyMeter(SPACE, SHAPE, LatencySettings(threads=2, repeats=5, held_out=5), seed=0)
    clock = meter._clock
    monkeypatch.setattr(meter, "_clock", lambda: (seen.add(torch.get_num_threads()), clock())[1])
    meter.table()
    assert seen == {2}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "meta", ""])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InvalidInput, match="latency.device must be a device"):
        check_device(device)
