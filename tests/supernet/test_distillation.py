"""Distillation: the divergence by hand, who teaches whom, and what a step minimises."""

import zlib

import pytest
import torch
from pydantic import ValidationError
from training_jobs import (
    SPACE,
    Recorder,
    batches,
    job,
    largest_difference,
    settings,
    supernet,
    train_plainly,
)

from supernet.cost import CostModel
from supernet.distillation import Teacher, divergence_sum
from supernet.engine import PlainEngine
from supernet.loss import pretraining_loss
from supernet.settings import PretrainingSettings
from supernet.space import Architecture
from supernet.training import train

PATH = Architecture.parse("attention-conv3-identity")
LARGEST = Architecture.parse("feed_forward-feed_forward-feed_forward")


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_divergence_is_that_of_the_softened_distributions():
    ours_NV, theirs_NV = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (theirs_NV / 3).softmax(-1), (ours_NV / 3).softmax(-1)
    expected = 9 * (p * (p / q).log()).sum()
    torch.testing.assert_close(divergence_sum(ours_NV, theirs_NV, temperature=3.0), expected)
    assert divergence_sum(ours_NV, ours_NV, temperature=3.0).abs() < 1e-5


def test_a_step_adds_the_teacher_s_divergence_and_the_teacher_s_side_gets_no_gradient():
    model, recipe, observer = shaken(supernet()), settings(steps=1), Recorder()
    gradients = {}

    class Keeping(PlainEngine):
        def update(self, learning_rate):
            gradients.update(
                {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            )

    teacher = Teacher(weight=0.7, temperature=2.0, path=LARGEST)
    walk = job(recipe, plan=lambda start, count: [(PATH,)] * count, teacher=teacher)
    train(Keeping(model, recipe), walk, observer, resume_from=None)
    batch = walk.batches.at(0)
    with torch.no_grad():
        taught_NV = model.eval()(
            LARGEST, batch.input_ids_BT, batch.attention_mask_BT, batch.masked_N
        )
    model.train().zero_grad()
    torch.manual_seed(zlib.crc32(f"dropout:0:0:0:0:{PATH}".encode()))
    found = pretraining_loss(model, PATH, batch)
    divergence = divergence_sum(found.logits_NV, taught_NV, temperature=2.0)
    ((found.child_sum + 0.7 * divergence) / batch.num_targets).backward()
    (row,) = observer.intervals
    assert row["distillation_loss_nats"] == pytest.approx(divergence.item() / batch.num_targets)
    assert row["loss_nats"] == pytest.approx(found.child_sum.item() / batch.num_targets)
    assert not any("feed_forward" in name for name in gradients)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad)


def test_the_largest_path_is_not_taught_by_itself():
    model, batch = shaken(supernet()), batches(settings()).at(0)
    teacher = Teacher(weight=1.0, temperature=2.0, path=LARGEST)
    for path, taught in ((LARGEST, False), (PATH, True)):
        found = pretraining_loss(model, path, batch)
        loss = teacher.loss_sum(model, path, found.logits_NV, found.seen)
        assert bool(loss > 0) is taught
    assert model.training
    assert CostModel(SPACE, model.shape).dearest("num_params") == LARGEST


def test_a_child_comes_nearer_to_another_model_that_teaches_it():
    other = shaken(supernet(seed=5)).eval()

    def predict(ids_BT, mask_BT):
        assert not torch.is_grad_enabled()
        everywhere_N = torch.arange(ids_BT.numel())
        return other(LARGEST, ids_BT, mask_BT, everywhere_N).view(*ids_BT.shape, -1)

    teacher, losses = Teacher(weight=5.0, temperature=1.0, predict=predict), []
    for taught in (None, teacher):
        recipe = settings(steps=40, learning_rate=1e-2, checkpoint_steps=40)
        plan = {"plan": lambda start, count: [(PATH,)] * count}
        model = train_plainly(recipe, dropout=0.0, teacher=taught, **plan)
        found = pretraining_loss(model, PATH, batches(recipe).at(0))
        losses.append(teacher.loss_sum(model, PATH, found.logits_NV, found.seen).item())
    assert losses[1] < 0.8 * losses[0]


def test_a_teacher_disturbs_no_dropout():
    """With next to no weight the training is that without a teacher."""
    nearly = Teacher(weight=1e-12, temperature=2.0, path=LARGEST)
    recipe = settings(steps=3, learning_rate=1e-3)
    one, other = train_plainly(recipe, teacher=nearly), train_plainly(recipe)
    assert largest_difference(one.state_dict(), other.state_dict()) < 1e-5


def test_a_teacher_is_for_masked_lm_alone():
    with pytest.raises(ValidationError, match="a teacher needs the objective masked_lm"):
        PretrainingSettings(objective="replaced_tokens", teacher={})
    assert PretrainingSettings(teacher={}).teacher.model == "largest"
