"""The study's averaged teacher, beside the product's alignment."""

import pytest
import torch
from test_alignment import ANCHOR, CHILD, held_out
from training_jobs import SPACE, supernet

from benchmarks.averaged_teacher import AveragedTeacher
from supernet.alignment import Anchor, alignment_loss
from supernet.loss import masked_lm_loss_and_states
from supernet.settings import AlignSettings


def teacher(model, decay):
    found = AveragedTeacher(
        AlignSettings(), SPACE, held_out(), steps=40, seed=0, model=model, decay=decay
    )
    found.current = Anchor(20, ANCHOR, 1.0)
    return found


def distances(model, found):
    """To the averaged teacher, and to the anchor under the same weights."""
    batch = held_out()[0]
    _, states = masked_lm_loss_and_states(model, CHILD, batch)
    theirs = alignment_loss(model, CHILD, ANCHOR, states, batch, AlignSettings())
    return float(found.distance(model, CHILD, states, batch)), float(theirs)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_the_teacher_is_the_moving_average_of_the_weights(decay):
    model = supernet(dropout=0.0)
    found = teacher(model, decay)
    one, other = distances(model, found)
    assert one == pytest.approx(other, rel=1e-5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    found.update(1, [], lambda *_: [])
    averaged = supernet(dropout=0.0)
    with torch.no_grad():
        for mean, old, new in zip(averaged.parameters(), before, model.parameters(), strict=True):
            mean.copy_(decay * old + (1 - decay) * new)
    batch = held_out()[0]
    _, states = masked_lm_loss_and_states(model, CHILD, batch)
    mask = batch.attention_mask_BT
    theirs = averaged.states(ANCHOR, batch.input_ids_BT, mask)
    by_hand = sum(
        (torch.nn.functional.layer_norm(a, (16,)) - torch.nn.functional.layer_norm(b, (16,)))
        .square()
        .mean(-1)[mask]
        .sum()
        / 3
        for a, b in zip(states[1:], theirs[1:], strict=True)
    )
    assert float(found.distance(model, CHILD, states, batch)) == pytest.approx(
        float(by_hand), rel=1e-4
    )
