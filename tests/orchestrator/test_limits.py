"""Limits on costs: what is read, what is refused, what is allowed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.limits import METRICS, Bound, Limits
from supernet.cost import Cost, CostModel
from supernet.errors import InvalidInput
from supernet.model import TextShape
from supernet.space import OperatorSpec, SearchSpace

numbers = st.one_of(
    st.integers(0, 10**30), st.floats(0, allow_nan=False, allow_infinity=False, width=64)
)
bounds = st.builds(
    Bound, st.sampled_from(METRICS), st.sampled_from(["<=", "<", ">=", ">"]), numbers
)
limits = st.builds(Limits, st.lists(bounds, max_size=4).map(tuple))
costs = st.builds(
    Cost, st.integers(0, 10**12), st.integers(0, 10**12), st.floats(0, 1e6, allow_nan=False)
)

SPACE = SearchSpace.uniform(
    3, {"conv3": OperatorSpec.of("separable_conv"), "identity": OperatorSpec.of("identity")}
)
SHAPE = TextShape(
    vocab_size=20, max_length=6, pad_id=0, hidden_size=8, embedding_size=8, dropout=0.0
)


@given(limits)
def test_the_text_form_reads_back(value):
    assert Limits.parse(str(value)) == value


@given(limits, costs)
def test_limits_allow_what_the_comparisons_say(value, cost):
    said = eval(str(value) or "True", vars(cost).copy())
    assert value.allow(cost) is said


@given(st.one_of(st.text(max_size=40), st.text("num_params flo<=>and(12e.) -", max_size=40)))
def test_any_text_is_read_or_refused(text):
    try:
        value = Limits.parse(text)
    except InvalidInput:
        return
    assert Limits.parse(str(value)) == value


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("num_params <= 1.5e6 and flops <= 2e8", "num_params <= 1500000 and flops <= 200000000"),
        ("1e6 <= num_params <= 2e6", "num_params >= 1000000 and num_params <= 2000000"),
        ("2_000 > flops", "flops < 2000"),
        ("  flops < 0.5\n  and num_params>3 ", "flops < 0.5 and num_params > 3"),
        (
            "flops <= 2 * 10**8 - 1 and latency_ms > -1",
            "flops <= 199999999 and latency_ms > -1",
        ),
        ("(flops < 5) and (num_params > 3)", "flops < 5 and num_params > 3"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_limits_are_read(text, written):
    assert str(Limits.parse(text)) == written


def test_an_empty_text_allows_everything():
    assert Limits.parse("").allow(Cost(10**15, 10**15))


@pytest.mark.parametrize(
    ("text", "part", "position"),
    [
        ("num_params <= 1e6 or flops <= 2", "num_params <= 1e6 or flops <= 2", 1),
        ("flops < 3 and num_params == 5", "num_params == 5", 15),
        ("flops <= num_params", "num_params", 10),
        ("3 <= 4", "3 <= 4", 1),
        ("flops <= 1 / 0", "1 / 0", 10),
        ("flops <= (0 - 1) ** 0.5", "(0 - 1) ** 0.5", 10),
        ("flops <= 9 ** 9 ** 9", "9 ** 9 ** 9", 10),
        ("flops <= 7 % 3", "7 % 3", 10),
        ("flops <= 2 * num_params", "num_params", 14),
        ("flops <= True", "True", 10),
        ("flops <= 1e999", "1e999", 10),
        ("flops", "flops", 1),
        ("not flops < 3", "not flops < 3", 1),
        ("é and flops < 'ü'", "é", 1),
        ("flops < 'ü'", "'ü'", 9),
        ("len('é') < 3", "len('é')", 1),
        ("flops < 3 flops", "flops", 11),
        ("__import__('os').system('true') < 3", "__import__('os').system('true')", 1),
    ],
)
def test_anything_else_is_refused_with_its_place(text, part, position):
    with pytest.raises(InvalidInput) as caught:
        Limits.parse(text)
    assert f"not allowed is {part!r} at position {position};" in str(caught.value)
    assert "allowed are comparisons of num_params, flops, latency_ms with a number" in str(
        caught.value
    )


def test_a_text_that_ends_too_early_is_refused():
    with pytest.raises(InvalidInput, match="not allowed is the end at position 14"):
        Limits.parse("flops < 3 and")


@pytest.mark.parametrize(
    ("name", "near"), [("params", "num_params"), ("flop", "flops"), ("Flops", "flops")]
)
def test_an_unknown_name_gets_the_nearest_known_one(name, near):
    with pytest.raises(InvalidInput, match=f"{name!r} at position 1; did you mean {near!r}"):
        Limits.parse(f"{name} <= 3")


@pytest.mark.parametrize(
    "text",
    ["(" * 500 + "flops < 3", "flops < 1\0", "1" * 5000 + " < flops", "flops < 1" + "+1" * 2000],
)
def test_hostile_texts_are_refused(text):
    with pytest.raises(InvalidInput, match="allowed are comparisons"):
        Limits.parse(text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("flops <= 3 and flops >= 3", True),
        ("flops < 3 and flops >= 3", False),
        ("flops < 3 and flops <= 2", True),
        ("flops >= 4 and flops <= 3", False),
        ("flops >= 4 and num_params <= 3", True),
    ],
)
def test_bounds_of_one_metric_leave_room_or_do_not(text, fits):
    one, other = Limits.parse(text).bounds
    same = one.metric == other.metric
    assert (not same or (one.leaves_room(other) and other.leaves_room(one))) == fits


@pytest.mark.parametrize("metric", METRICS)
def test_a_limit_below_the_cheapest_child_is_refused_with_its_cost(metric):
    model = CostModel(SPACE, SHAPE, ends_ms=0.5, operators_ms={"conv3": 0.25, "identity": 0.125})
    least = getattr(model.cost(model.cheapest(metric)), metric)
    Limits.parse(f"{metric} <= {least}").check_feasible(model)
    Limits.parse(f"{metric} >= 0").check_feasible(model)
    with pytest.raises(InvalidInput) as caught:
        Limits.parse(f"{metric} < {least}").check_feasible(model)
    assert f"{least:,}, of 'identity-identity-identity'" in str(caught.value)
