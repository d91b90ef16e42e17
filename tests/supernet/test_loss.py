"""The masked-LM loss of one child."""

import pytest
import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.loss import evaluate, masked_lm_loss
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    2,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
    },
)
SHAPE = TextShape(
    vocab_size=20, max_length=6, pad_id=0, hidden_size=8, embedding_size=8, dropout=0.5
)
CHILD = Architecture.parse("attention-conv3")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SuperNet(SPACE, SHAPE).eval()


def batch_of(*masked, padding=0):
    rng = torch.Generator().manual_seed(len(masked))
    ids_BT = torch.randint(1, 20, (2, 6), generator=rng)
    real_BT = torch.ones(2, 6, dtype=torch.bool)
    if padding:
        real_BT[:, -padding:] = False
    masked_N = torch.tensor(masked, dtype=torch.int64)
    return Batch(ids_BT, real_BT, masked_N, ids_BT.flatten()[masked_N])


def plain_losses(model, batch, mask_BT):
    logits_NV = model(CHILD, batch.input_ids_BT, mask_BT, batch.masked_N)
    return -F.log_softmax(logits_NV, -1)[range(len(batch.targets_N)), batch.targets_N]


def test_the_loss_is_the_sum_over_masked_positions(model):
    batch = batch_of(1, 4, 9)
    loss_sum, count = masked_lm_loss(model, CHILD, batch)
    assert count == 3
    torch.testing.assert_close(loss_sum, plain_losses(model, batch, None).sum())


def test_padding_is_hidden_from_the_child(model):
    batch = batch_of(1, 7, padding=2)
    loss_sum, _ = masked_lm_loss(model, CHILD, batch)
    expected = plain_losses(model, batch, batch.attention_mask_BT).sum()
    torch.testing.assert_close(loss_sum, expected)
    assert loss_sum.item() != pytest.approx(plain_losses(model, batch, None).sum().item(), abs=1e-6)


def test_the_loss_has_gradients_for_the_path_alone(model):
    loss_sum, _ = masked_lm_loss(model, CHILD, batch_of(1, 4))
    loss_sum.backward()
    assert model.operator(0, "attention").query.weight.grad is not None
    assert model.operator(0, "conv3").pointwise.weight.grad is None


def test_evaluation_weighs_every_masked_position_the_same(model):
    batches = [batch_of(1, 4, 9), batch_of(2)]
    loss, accuracy = evaluate(model, CHILD, batches)
    every = torch.cat([plain_losses(model, batch, None) for batch in batches])
    assert loss == pytest.approx(every.mean().item(), rel=1e-5)
    assert 0 <= accuracy <= 1


def test_accuracy_counts_the_targets_that_are_ranked_first(model):
    batch = batch_of(1, 4, 9, 10)
    best_N = model(CHILD, batch.input_ids_BT, None, batch.masked_N).argmax(-1)
    half_N = torch.where(torch.arange(4) < 2, best_N, (best_N + 1) % 20)
    targeted = Batch(batch.input_ids_BT, batch.attention_mask_BT, batch.masked_N, half_N)
    assert evaluate(model, CHILD, [targeted])[1] == 0.5


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_out_dropout_and_keeps_the_mode(model, training):
    model.train(training)
    batches = [batch_of(1, 4, 9)]
    assert evaluate(model, CHILD, batches) == evaluate(model, CHILD, batches)
    assert model.training is training


def test_evaluation_needs_a_masked_token(model):
    with pytest.raises(InvalidInput, match="at least one masked token"):
        evaluate(model, CHILD, [batch_of()])
