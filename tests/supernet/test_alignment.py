"""MAGIC-A: what is aligned, with whom, and when the anchor gives way."""

import random

import pytest
import torch
from memory_files import MemoryFiles
from training_jobs import (
    SPACE,
    Recorder,
    batches,
    largest_difference,
    settings,
    supernet,
    train_plainly,
)

from supernet.alignment import Anchor, Anchors, alignment_loss
from supernet.checkpoint import latest_checkpoint
from supernet.errors import InvalidInput
from supernet.loss import masked_lm_loss_and_states
from supernet.settings import AlignSettings
from supernet.space import Architecture

CHILD = Architecture(("attention", "feed_forward", "conv3"))
ANCHOR = Architecture(("attention", "conv3", "conv3"))
PATHS = [SPACE.sample(random.Random(n)) for n in range(5)]
NAN = float("nan")


def held_out(count=2):
    return [batches(settings(), seed=1).at(step) for step in range(count)]


def anchors(*, steps=40, align=None, count=2):
    return Anchors(align or AlignSettings(), SPACE, held_out(count), steps=steps, seed=0)


def distance(model, child, anchor, align=None, *, batch=None):
    batch = batch or held_out()[0]
    _, states = masked_lm_loss_and_states(model, child, batch)
    return alignment_loss(model, child, anchor, states, batch, align or AlignSettings())


def by_hand(model, child, anchor, *, layers=range(3), normalise=True):
    batch = held_out()[0]
    mask = batch.attention_mask_BT
    total = 0.0
    ours, theirs = (model.states(path, batch.input_ids_BT, mask) for path in (child, anchor))
    for layer in layers:
        pair = [states[layer + 1] for states in (ours, theirs)]
        if normalise:
            pair = [torch.nn.functional.layer_norm(x, (16,)) for x in pair]
        total += (pair[0] - pair[1]).square().mean(-1)[mask].sum() / len(layers)
    return float(total)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("layers", [None, (2,), (0, 1), (0,)])
def test_the_loss_is_the_squared_distance_of_the_compared_hidden_states(layers, normalise):
    model = supernet(dropout=0.0)
    align = AlignSettings(layers=layers, normalise=normalise)
    loss = float(distance(model, CHILD, ANCHOR, align).detach())
    expected = by_hand(model, CHILD, ANCHOR, layers=layers or range(3), normalise=normalise)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert (loss == 0.0) == (layers == (0,))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_loss_of_the_anchor_itself_is_zero(dropout):
    assert float(distance(supernet(dropout=dropout).train(), ANCHOR, ANCHOR)) == 0.0


def test_no_gradient_reaches_the_anchors_side():
    model = supernet(dropout=0.0)
    distance(model, CHILD, ANCHOR).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("chain.layers.1.feed_forward") for name in moved)
    assert not any(name.startswith("chain.layers.1.conv3") for name in moved)


def test_the_gradient_of_a_shared_operator_is_that_of_the_childs_side_alone():
    model = supernet(dropout=0.0)
    batch = held_out()[0]
    shared = model.operator(2, "conv3").pointwise.weight
    distance(model, CHILD, ANCHOR, batch=batch).backward()
    found = shared.grad.clone()
    shared.grad = None
    mask = batch.attention_mask_BT
    with torch.no_grad():
        theirs = model.states(ANCHOR, batch.input_ids_BT, mask)
    ours = model.states(CHILD, batch.input_ids_BT, mask)
    norm = torch.nn.functional.layer_norm
    wanted = sum(
        (norm(a, (16,)) - norm(b, (16,))).square().mean(-1)[mask].sum() / 3
        for a, b in zip(ours[1:], theirs[1:], strict=True)
    )
    wanted.backward()
    torch.testing.assert_close(found, shared.grad)


def test_lambda_is_zero_at_first_then_rises_to_its_value():
    found = anchors(steps=100, align=AlignSettings(weight=0.4, start=0.5, ramp=0.1))
    assert found.weight(60) == 0.0, "without an anchor there is nothing to align with"
    found.current = Anchor(50, ANCHOR, 1.0)
    assert [found.weight(step) for step in (0, 49)] == [0.0, 0.0]
    rising = [found.weight(step) for step in range(50, 62)]
    assert rising == sorted(rising)
    assert rising[0] == pytest.approx(0.04)
    assert rising[9:] == pytest.approx([0.4] * 3)


def test_the_first_anchor_is_the_best_of_the_candidates():
    found = anchors(align=AlignSettings(first_candidates=4, start=0.0))
    scored = []

    def score(paths, batch):
        scored.extend(paths)
        return [float(len(scored) - n) for n in range(len(paths))]

    anchor = found.update(0, (PATHS[0],), score)
    assert anchor.architecture == scored[-1]
    assert scored[0] == PATHS[0]
    assert len(scored) <= 4


@pytest.mark.parametrize("loss, changes", [(0.9, True), (1.0, False), (1.1, False), (NAN, False)])
def test_the_anchor_changes_only_for_a_better_score_on_the_same_batch(loss, changes):
    found = anchors(align=AlignSettings(challengers=1, start=0.0, interval=10))
    found.current = Anchor(0, ANCHOR, 0.5)
    calls = []

    def score(paths, batch):
        calls.append((list(paths), batch))
        return [1.0 if path == ANCHOR else loss for path in paths]

    found.update(10, (CHILD,), score)
    assert calls[0][0] == [ANCHOR, CHILD]
    assert (found.current.architecture == CHILD) == changes
    if changes:
        assert found.current == Anchor(10, CHILD, loss, ANCHOR, 1.0, changes=1)


@pytest.mark.parametrize(
    "losses, chosen", [([NAN, 2.0, 1.0], 2), ([2.0, NAN, 1.0], 2), ([1.0, 2.0, NAN], 0)]
)
def test_a_loss_that_is_no_number_neither_wins_nor_hides_a_better_one(losses, chosen):
    found = anchors(align=AlignSettings(challengers=2, start=0.0, interval=10))
    found.current = Anchor(0, ANCHOR, 0.5)
    rivals = []

    def score(paths, batch):
        rivals.extend(paths)
        return losses

    found.update(10, (CHILD, PATHS[0]), score)
    assert found.current.architecture == rivals[chosen]


def test_a_first_anchor_is_not_chosen_where_no_loss_is_a_number():
    found = anchors(align=AlignSettings(start=0.0))
    assert found.update(0, (CHILD,), lambda paths, batch: [NAN] * len(paths)) is None
    assert found.current is None


def test_comparisons_come_every_interval_on_held_out_batches_in_turn():
    found = anchors(align=AlignSettings(start=0.5, interval=5), steps=40, count=2)
    seen = []

    def score(paths, batch):
        seen.append((step, int(batch.input_ids_BT.sum())))
        return [1.0] * len(paths)

    for step in range(40):
        found.update(step, (CHILD,), score)
    assert [step for step, _ in seen] == [20, 25, 30, 35]
    sums = [int(batch.input_ids_BT.sum()) for batch in held_out(2)]
    assert [batch for _, batch in seen] == sums * 2


def test_an_anchor_survives_its_row():
    found = anchors()
    anchor = Anchor(7, CHILD, 1.5, ANCHOR, 1.75, changes=3)
    found.resume(anchor.to_row())
    assert found.current == anchor
    found.resume(None)
    assert found.current is None


def test_a_layer_that_the_space_lacks_is_refused():
    with pytest.raises(InvalidInput, match="layers from 0 to 2, but got 3"):
        anchors(align=AlignSettings(layers=(1, 3)))


ALIGN = AlignSettings(weight=0.5, start=0.25, ramp=0.1, interval=3, challengers=2)


def test_alignment_changes_training_from_its_start_on_and_not_before():
    plain = train_plainly(settings(steps=10)).state_dict()
    early = train_plainly(settings(steps=10), anchors=anchors(steps=40, align=ALIGN)).state_dict()
    assert largest_difference(plain, early) == 0.0
    plain = train_plainly(settings()).state_dict()
    aligned = train_plainly(settings(), anchors=anchors(align=ALIGN)).state_dict()
    assert largest_difference(plain, aligned) > 0.0


def test_alignment_draws_children_towards_the_anchor():
    recipe, far, near = settings(), Recorder(), Recorder()
    weak = ALIGN.model_copy(update={"weight": 1e-9})
    train_plainly(recipe, observer=far, anchors=anchors(align=weak))
    strong = ALIGN.model_copy(update={"weight": 5.0})
    train_plainly(recipe, observer=near, anchors=anchors(align=strong))
    assert near.kept[-1]["alignment_loss"] < 0.5 * far.kept[-1]["alignment_loss"]


def test_training_with_alignment_resumes_bit_for_bit_with_the_same_anchors():
    whole, first, second = Recorder(), Recorder(stop_at=30), Recorder()
    wanted = train_plainly(settings(), observer=whole, anchors=anchors(align=ALIGN))
    files = MemoryFiles()
    with pytest.raises(KeyboardInterrupt):
        train_plainly(settings(), files=files, observer=first, anchors=anchors(align=ALIGN))
    checkpoint = latest_checkpoint(files, "supernet")
    assert checkpoint.step == 20
    assert checkpoint.extra["anchor"]["architecture"]
    found = train_plainly(
        settings(),
        files=files,
        observer=second,
        anchors=anchors(align=ALIGN),
        resume_from=checkpoint,
    )
    assert largest_difference(wanted.state_dict(), found.state_dict()) == 0.0
    assert len(whole.anchors) > 1
    assert first.anchors + second.anchors == whole.anchors
