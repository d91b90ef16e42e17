"""Interference of two children, against autograd and the states computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.interference import measure_interference
from supernet.loss import masked_lm_loss
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    3,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "skip": OperatorSpec.of("identity"),
        "pass": OperatorSpec.of("identity"),
    },
)
SHAPE = TextShape(
    vocab_size=20, max_length=6, pad_id=0, hidden_size=8, embedding_size=8, dropout=0.5
)


@pytest.fixture
def model():
    """With weights large enough for operators to differ."""
    torch.manual_seed(0)
    model = SuperNet(SPACE, SHAPE)
    with torch.no_grad():
        for weight in model.chain.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


@pytest.fixture
def batch():
    ids_BT = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    real_BT = torch.ones(4, 6, dtype=torch.bool)
    real_BT[1, 4:] = False
    masked_N = torch.tensor([1, 7, 13, 20])
    return Batch(ids_BT, real_BT, masked_N, ids_BT.flatten()[masked_N])


def paths(*texts):
    return [Architecture.parse(text) for text in texts]


def gradient(model, path, batch, layer):
    model.zero_grad()
    loss_sum, _ = masked_lm_loss(model.eval(), path, batch)
    loss_sum.backward()
    weights = model.operator(layer, path.operators[layer]).parameters()
    return torch.cat([weight.grad.flatten() for weight in weights])


def states(model, path, batch):
    """The stem's output and each layer's, at real tokens, flat."""
    model.eval()
    hidden_BTD = model.stem(batch.input_ids_BT, None)
    found = [hidden_BTD]
    for layer, name in enumerate(path.operators):
        found.append(model.operator(layer, name)(found[-1], batch.attention_mask_BT))
    return [state[batch.attention_mask_BT].flatten() for state in found]


def test_cosines_of_gradients_are_those_of_autograd(model, batch):
    group = paths("attention-conv3-conv3", "conv3-conv3-conv3", "conv3-conv3-attention")
    rows = measure_interference(model, group, batch)
    assert len(rows) == 5
    for row in rows:
        first, second = (
            gradient(model, group[place], batch, row.layer) for place in (row.first, row.second)
        )
        expected = F.cosine_similarity(first, second, dim=0).item()
        assert row.gradient_cosine == pytest.approx(expected, abs=1e-5)
        assert abs(expected) < 0.999


def test_likeness_is_that_of_hidden_states_at_real_tokens(model, batch):
    group = paths("attention-conv3-conv3", "conv3-conv3-conv3")
    rows = {row.layer: row for row in measure_interference(model, group, batch)}
    first, second = (states(model, path, batch) for path in group)
    for layer, row in rows.items():
        for side, place in (("input", layer), ("output", layer + 1)):
            cosine = F.cosine_similarity(first[place], second[place], dim=0).item()
            assert getattr(row, f"{side}_cosine") == pytest.approx(cosine, abs=1e-5)
            mse = F.mse_loss(first[place], second[place]).item()
            assert getattr(row, f"{side}_neg_mse") == pytest.approx(-mse, rel=1e-4)
            assert cosine < 0.999


def test_children_that_compute_the_same_do_not_interfere(model, batch):
    (row,) = measure_interference(model, paths("conv3-skip-pass", "conv3-pass-skip"), batch)
    assert (row.layer, row.operator) == (0, "conv3")
    assert row.gradient_cosine == row.input_cosine == row.output_cosine == 1.0
    assert row.input_neg_mse == row.output_neg_mse == 0.0


def test_a_later_difference_changes_gradients_but_neither_input_nor_output(model, batch):
    (row,) = measure_interference(model, paths("conv3-skip-skip", "conv3-conv3-skip"), batch)
    assert row.gradient_cosine < 0.9999
    assert row.input_cosine == row.output_cosine == 1.0


def test_rows_are_the_shared_operators_that_have_parameters(model, batch):
    group = paths("conv3-skip-attention", "conv3-skip-conv3", "attention-skip-conv3")
    found = [
        (row.first, row.second, row.layer, row.operator)
        for row in measure_interference(model, group, batch)
    ]
    assert found == [(0, 1, 0, "conv3"), (1, 2, 2, "conv3")]


def test_children_without_parameters_share_nothing(model, batch):
    assert measure_interference(model, paths("skip-skip-skip", "skip-skip-pass"), batch) == []


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_and_dropout_is_off(model, batch, training):
    model.train(training)
    group = paths("conv3-conv3-skip", "conv3-attention-skip")
    assert measure_interference(model, group, batch) == measure_interference(model, group, batch)
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_gradient_of_zero_has_no_cosine(model, batch):
    with torch.no_grad():
        model.operator(1, "conv3").norm.weight.zero_()
    (first, _) = measure_interference(model, paths("conv3-conv3-skip", "conv3-conv3-pass"), batch)
    assert first.layer == 0
    assert first.gradient_cosine != first.gradient_cosine


def test_a_batch_without_masked_tokens_is_refused(model, batch):
    nothing_N = torch.zeros(0, dtype=torch.int64)
    empty = Batch(batch.input_ids_BT, batch.attention_mask_BT, nothing_N, nothing_N)
    with pytest.raises(InvalidInput, match=r"at least one masked token.*interference.batch_size"):
        measure_interference(model, paths("conv3-skip-skip", "conv3-pass-skip"), empty)
