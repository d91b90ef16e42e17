"""What every candidate operator owes the super-net; a new kind joins by one line in KINDS."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from supernet.cost import count_params
from supernet.operators import OPERATOR_KINDS, Chain, build_operator, operator_class

HIDDEN = 24
LENGTH = 10
H = HIDDEN
PARAMS = {
    "attention": 4 * (H * H + H) + 2 * H,
    "feed_forward": H * 4 * H + 4 * H + 4 * H * H + H + 2 * H,
    "separable_conv": (3 * H + H) + (H * H + H) + 2 * H,
    "identity": 0,
    "user_operators:GatedUnit": 2 * H * H,
}
"""Parameters by kind with default settings, as formulas of the hidden size."""

KINDS = list(PARAMS)
LEARNING = [kind for kind in KINDS if PARAMS[kind]]


@pytest.fixture(autouse=True)
def user_module(request, monkeypatch):
    monkeypatch.syspath_prepend(request.path.parent)


def build(kind, *, hidden_size=HIDDEN, dropout=0.1, seed=0, **settings):
    torch.manual_seed(seed)
    return build_operator({"kind": kind, **settings}, hidden_size=hidden_size, dropout=dropout)


def hidden(seed=1, *, sequences=3):
    return torch.randn(sequences, LENGTH, HIDDEN, generator=torch.Generator().manual_seed(seed))


def mask_of(*lengths):
    return torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]


def test_every_kind_of_ours_is_under_contract():
    assert set(OPERATOR_KINDS) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mask_BT", [None, mask_of(10, 4, 1)])
def test_shape_and_type_are_kept(kind, mask_BT):
    hidden_BTD = hidden()
    out_BTD = build(kind).eval()(hidden_BTD, mask_BT)
    assert out_BTD.shape == hidden_BTD.shape
    assert out_BTD.dtype == hidden_BTD.dtype
    assert out_BTD.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_padding_does_not_reach_real_tokens(kind):
    operator, mask_BT = build(kind).eval(), mask_of(7, 4, 1)
    clean_BTD = hidden()
    padded_BTD = torch.where(mask_BT[:, :, None], clean_BTD, 1e3 * hidden(seed=2))
    out_BTD, padded_out_BTD = operator(clean_BTD, mask_BT), operator(padded_BTD, mask_BT)
    torch.testing.assert_close(padded_out_BTD[mask_BT], out_BTD[mask_BT])


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_sequence_gives_what_it_gives_alone(kind):
    operator, hidden_BTD = build(kind).eval(), hidden(sequences=1)
    alone_BTD = operator(hidden_BTD[:, :6], None)
    padded_BTD = operator(hidden_BTD, mask_of(6))
    torch.testing.assert_close(padded_BTD[:, :6], alone_BTD)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [4, 32])
def test_flops_are_those_that_torch_counts(kind, length):
    operator = build(kind, hidden_size=128).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        operator(torch.randn(1, length, 128), None)
    counted = counter.get_total_flops()
    if kind == "identity":
        assert operator.flops(length) == counted == 0
    else:
        assert operator.flops(length) == pytest.approx(counted, rel=0.01)
        assert counted > 0


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_as_many_as_the_formula_says(kind):
    assert count_params(build(kind)) == PARAMS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_input_and_the_weights(kind):
    operator, hidden_BTD = build(kind, dropout=0.0).train(), hidden().requires_grad_()
    (operator(hidden_BTD, mask_of(10, 4, 1)) * hidden(seed=3)).sum().backward()
    assert hidden_BTD.grad.abs().sum() > 0
    for name, parameter in operator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if name != "key.bias":  # adds the same to all scores of a query: softmax removes it
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", LEARNING)
def test_weights_begin_the_same_under_a_seed_and_otherwise_differ(kind):
    first, again, other = (build(kind, seed=seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", LEARNING)
def test_linear_weights_begin_as_in_bert(kind):
    for module in build(kind, hidden_size=128).modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is None or module.bias.eq(0).all()


@pytest.mark.parametrize("kind", ["attention", "feed_forward", "separable_conv"])
def test_dropout_acts_in_training_alone(kind):
    operator, hidden_BTD = build(kind, dropout=0.5), hidden()
    assert not torch.equal(operator(hidden_BTD, None), operator(hidden_BTD, None))
    operator.eval()
    assert torch.equal(operator(hidden_BTD, None), operator(hidden_BTD, None))


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_a_convolution_sees_half_a_kernel_to_each_side(kernel_size):
    operator = build("separable_conv", kernel_size=kernel_size).eval()
    hidden_BTD = hidden(sequences=1)
    changed_BTD = hidden_BTD.clone()
    changed_BTD[0, 5] += 1.0
    moved_T = (operator(hidden_BTD, None) != operator(changed_BTD, None)).any(-1)[0]
    assert moved_T.nonzero()[:, 0].tolist() == list(
        range(5 - kernel_size // 2, 5 + kernel_size // 2 + 1)
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "attention", "heads": 5}, "multiple of heads"),
        ({"kind": "attention", "heads": 0}, "multiple of heads"),
        ({"kind": "feed_forward", "inner_size": -1}, "inner_size"),
        ({"kind": "separable_conv", "kernel_size": 4}, "odd"),
        ({"kind": "separable_conv", "kernel_size": -1}, "odd"),
        ({"kind": "attention", "kernel_size": 3}, "kernel_size"),
        ({"kind": "pooling"}, "unknown operator kind 'pooling'"),
        ({"kind": "no_such_module:Operator"}, "no_such_module"),
        ({"kind": "user_operators:Missing"}, "Missing"),
        ({"kind": "user_operators:NoFlops"}, "flops"),
        ({"kind": "user_operators:torch"}, "nn.Module"),
    ],
)
def test_a_wrong_kind_or_setting_is_refused_by_name(spec, message):
    with pytest.raises(ValueError, match=message):
        build_operator(spec, hidden_size=HIDDEN, dropout=0.1)


def test_a_user_s_operator_is_found_by_module_and_class_with_its_settings():
    import user_operators

    assert operator_class("user_operators:GatedUnit") is user_operators.GatedUnit
    assert build("user_operators:GatedUnit", scale=0.5).scale == 0.5


def test_a_chain_runs_the_operators_of_the_path_in_order():
    specs = {"attention": {"kind": "attention"}, "conv": {"kind": "separable_conv"}}
    chain = Chain([specs, specs], hidden_size=HIDDEN, dropout=0.1).eval()
    hidden_BTD, mask_BT = hidden(), mask_of(10, 4, 1)
    first, second = chain.layers[0]["conv"], chain.layers[1]["attention"]
    torch.testing.assert_close(
        chain(hidden_BTD, mask_BT, ("conv", "attention")),
        second(first(hidden_BTD, mask_BT), mask_BT),
    )
    with pytest.raises(ValueError):
        chain(hidden_BTD, mask_BT, ("conv",))
