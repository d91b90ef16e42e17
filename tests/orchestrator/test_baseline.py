"""The hand-made Transformer and the random controls."""

import pytest

from orchestrator.baseline import handmade_baseline, random_controls
from orchestrator.limits import Limits
from supernet.cost import CostModel
from supernet.errors import InvalidInput
from supernet.model import TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SHAPE = TextShape(
    vocab_size=20, max_length=6, pad_id=0, hidden_size=8, embedding_size=8, dropout=0.0
)
OPERATORS = {
    "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
    "att2": OperatorSpec.of("attention", heads=2),
    "wide": OperatorSpec.of("feed_forward"),
    "narrow": OperatorSpec.of("feed_forward", inner_size=4),
    "skip": OperatorSpec.of("identity"),
}


def space_of(layers, *names):
    return SearchSpace.uniform(layers, {name: OPERATORS[name] for name in names or OPERATORS})


def baseline_near(space, text):
    """The baseline for exactly the size of this architecture."""
    model = CostModel(space, SHAPE)
    size = model.cost(Architecture.parse(text)).num_params
    return str(handmade_baseline(space, model, num_params=size))


@pytest.mark.parametrize(
    "text",
    [
        "att2-narrow-skip-skip-skip",
        "att2-narrow-att2-narrow-skip",
        "att2-wide-skip-skip-skip",
        "att2-wide-att2-wide-skip",
    ],
)
def test_depth_and_pair_are_those_nearest_in_size(text):
    assert baseline_near(space_of(5), text) == text


def test_sizes_out_of_reach_get_the_smallest_or_the_deepest():
    space = space_of(5)
    model = CostModel(space, SHAPE)
    assert str(handmade_baseline(space, model, num_params=0)) == "att2-narrow-skip-skip-skip"
    largest = handmade_baseline(space, model, num_params=10**9)
    assert str(largest) == "att2-wide-att2-wide-skip"


def test_the_nearest_of_all_is_taken():
    space = space_of(4)
    model = CostModel(space, SHAPE)
    every = ["att2-narrow-skip-skip", "att2-wide-skip-skip", "att2-narrow-att2-narrow"]
    every += ["att2-wide-att2-wide"]
    sizes = [model.cost(Architecture.parse(text)).num_params for text in every]
    for wanted in range(min(sizes) - 50, max(sizes) + 50, 37):
        got = model.cost(handmade_baseline(space, model, num_params=wanted)).num_params
        assert abs(got - wanted) == min(abs(size - wanted) for size in sizes)


@pytest.mark.parametrize(
    ("layers", "expected"), [(4, "att2-wide-att2-wide"), (3, "att2-wide-att2")]
)
def test_without_identity_the_pattern_fills_the_chain(layers, expected):
    assert baseline_near(space_of(layers, "att2", "wide"), expected) == expected


def test_layers_without_the_operator_are_respected():
    layers = (("att2", "conv3"), ("wide",), ("conv3", "skip"), ("skip", "att2"))
    space = SearchSpace(layers, OPERATORS)
    chosen = handmade_baseline(space, CostModel(space, SHAPE), num_params=10**9)
    assert str(chosen) == "att2-wide-skip-skip" and space.contains(chosen)


@pytest.mark.parametrize("names", [("conv3", "skip"), ("att2", "skip"), ("wide", "conv3")])
def test_a_space_without_transformers_is_refused(names):
    space = space_of(4, *names)
    with pytest.raises(InvalidInput, match="'attention' and 'feed_forward'"):
        handmade_baseline(space, CostModel(space, SHAPE), num_params=1000)


def controls_of(space, limits="", **settings):
    arguments = {"count": 5, "seed": 0, "exclude": []} | settings
    return random_controls(space, CostModel(space, SHAPE), Limits.parse(limits), **arguments)


def test_controls_are_distinct_and_within_limits():
    space = space_of(4)
    model = CostModel(space, SHAPE)
    sizes = [model.cost(control).num_params for control in controls_of(space, count=30)]
    bound = sorted(sizes)[10]
    controls = controls_of(space, f"num_params <= {bound}", count=30)
    assert len(set(controls)) == 30
    assert all(model.cost(control).num_params <= bound for control in controls)


def test_controls_are_repeatable_and_leave_out_the_excluded():
    space = space_of(2)
    first = controls_of(space)
    assert first == controls_of(space) != controls_of(space, seed=1)
    assert not set(first) & set(controls_of(space, exclude=first))


def test_a_space_that_is_used_up_gives_fewer_with_a_warning(caplog):
    space = space_of(2, "conv3", "skip")
    exclude = [Architecture.parse("conv3-conv3")]
    assert len(controls_of(space, exclude=exclude)) == 3
    assert "the space has only 3 more architectures" in caplog.text
