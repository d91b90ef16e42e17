"""Scores of children that tell replaced tokens: one corruption per version, the same for all."""

import pytest
import torch

import supernet.loss
from evaluators.evaluator import Evaluator
from supernet.data.masking import Batch
from supernet.loss import evaluate
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
    vocab_size=30,
    max_length=8,
    pad_id=0,
    hidden_size=16,
    embedding_size=8,
    dropout=0.1,
    objective="replaced_tokens",
    generator_hidden_size=4,
    generator_pairs=1,
    generator_heads=2,
    discriminator_weight=50.0,
)
CHILDREN = [Architecture.parse(text) for text in ("attention-conv3", "attention-attention")]


def weights(seed):
    torch.manual_seed(seed)
    model = SuperNet(SPACE, SHAPE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.state_dict()


def batch(rows=6):
    ids_BT = torch.randint(4, 30, (rows, 8), generator=torch.Generator().manual_seed(0))
    real_BT = torch.arange(8).expand(rows, 8) < 7
    masked_N = torch.arange(rows) * 8 + torch.arange(rows) % 5
    targets_N = ids_BT.flatten()[masked_N]
    return Batch(
        ids_BT.index_put((masked_N // 8, masked_N % 8), torch.tensor(3)),
        real_BT,
        masked_N,
        targets_N,
    )


def test_the_generator_runs_once_per_version_and_scores_are_those_of_evaluate(monkeypatch):
    made = []
    corrupt = supernet.loss.replace_tokens
    monkeypatch.setattr(
        supernet.loss, "replace_tokens", lambda *of: (made.append(1), corrupt(*of))[1]
    )
    evaluator = Evaluator(SPACE, SHAPE, weights(0), [batch()], version="1")
    together = evaluator.score_together(CHILDREN)
    alone = [evaluator.score(child) for child in CHILDREN]
    assert len(made) == 1
    for one, other, child in zip(together, alone, CHILDREN, strict=True):
        found = (one.val_loss_nats, one.masked_accuracy)
        assert found == (other.val_loss_nats, other.masked_accuracy)
        assert found == evaluate(evaluator.model, child, [batch()])
    assert together[0].val_loss_nats != together[1].val_loss_nats
    evaluator.load(weights(1), "2")
    assert evaluator.score(CHILDREN[0]).val_loss_nats != together[0].val_loss_nats


def test_a_score_does_not_depend_on_how_sequences_are_put_into_batches():
    whole = batch()
    halves = [
        Batch(whole.input_ids_BT[rows], whole.attention_mask_BT[rows], masked_N, targets_N)
        for rows, masked_N, targets_N in (
            (slice(0, 3), whole.masked_N[:3], whole.targets_N[:3]),
            (slice(3, 6), whole.masked_N[3:] - 24, whole.targets_N[3:]),
        )
    ]
    one, other = (
        Evaluator(SPACE, SHAPE, weights(0), batches, version="1").score(CHILDREN[0])
        for batches in ([whole], halves)
    )
    assert one.val_loss_nats == pytest.approx(other.val_loss_nats, rel=1e-5)
    assert one.masked_accuracy == other.masked_accuracy
