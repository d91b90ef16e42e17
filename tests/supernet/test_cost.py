"""Costs by formula, against the child that is built and the operations that torch counts."""

import random

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet.cost import Cost, CostModel, count_params
from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    4,
    {
        "attention": OperatorSpec.of("attention", heads=4),
        "feed_forward": OperatorSpec.of("feed_forward"),
        "narrow": OperatorSpec.of("feed_forward", inner_size=24),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "conv7": OperatorSpec.of("separable_conv", kernel_size=7),
        "identity": OperatorSpec.of("identity"),
    },
)
CHILDREN = [
    Architecture.parse("identity-identity-identity-identity"),
    Architecture.parse("attention-feed_forward-attention-feed_forward"),
    *(SPACE.sample(random.Random(seed)) for seed in range(4)),
]


def shape(embedding_size):
    return TextShape(
        vocab_size=150,
        max_length=20,
        pad_id=0,
        hidden_size=48,
        embedding_size=embedding_size,
        dropout=0.1,
    )


@pytest.mark.parametrize("child", CHILDREN, ids=str)
@pytest.mark.parametrize("embedding_size", [48, 12])
def test_parameters_are_those_of_the_child_alone(child, embedding_size):
    alone = SuperNet(SPACE.restricted_to(child), shape(embedding_size))
    found = CostModel(SPACE, shape(embedding_size)).cost(child)
    assert found.num_params == count_params(alone)
    assert found.num_params == sum(tensor.numel() for tensor in alone.state_dict().values())


@pytest.mark.parametrize("child", CHILDREN, ids=str)
@pytest.mark.parametrize("embedding_size", [48, 12])
def test_flops_are_those_that_torch_counts_for_the_child(child, embedding_size):
    alone = SuperNet(SPACE.restricted_to(child), shape(embedding_size)).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        alone(child, torch.ones(1, 20, dtype=torch.int64), None, torch.arange(20))
    found = CostModel(SPACE, shape(embedding_size)).cost(child)
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_child_costs_the_same_in_its_own_space():
    child = CHILDREN[-1]
    in_space = CostModel(SPACE, shape(48)).cost(child)
    assert CostModel(SPACE.restricted_to(child), shape(48)).cost(child) == in_space


@pytest.mark.parametrize("metric", ["num_params", "flops"])
def test_the_cheapest_child_costs_least(metric):
    operators = {name: spec for name, spec in SPACE.operators.items() if name != "identity"}
    space = SearchSpace((tuple(operators), ("feed_forward", "conv7"), ("attention",)), operators)
    model = CostModel(space, shape(48))
    cheapest = model.cheapest(metric)
    assert str(cheapest) in ("conv3-conv7-attention", "narrow-conv7-attention")
    least = getattr(model.cost(cheapest), metric)
    for seed in range(30):
        other: Cost = model.cost(space.sample(random.Random(seed)))
        assert getattr(other, metric) >= least


def test_a_metric_that_is_not_a_cost_is_refused():
    with pytest.raises(InvalidInput, match="latency_ms"):
        CostModel(SPACE, shape(48)).cheapest("latency_ms")
