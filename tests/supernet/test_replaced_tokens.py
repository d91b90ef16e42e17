"""Replaced-token detection: what is sampled, what it costs, what moves, and what is repeatable."""

import math
import zlib

import pytest
import torch
import torch.nn.functional as F
from memory_files import MemoryFiles
from training_jobs import (
    REPLACED_TOKENS,
    SPACE,
    VOCAB,
    Recorder,
    batches,
    job,
    largest_difference,
    settings,
    supernet,
    train_plainly,
)

from supernet.alignment import Anchors
from supernet.checkpoint import latest_checkpoint
from supernet.cost import CostModel, count_params
from supernet.data.masking import Batch
from supernet.engine import PlainEngine
from supernet.errors import InvalidInput
from supernet.interference import measure_interference
from supernet.loss import (
    as_scored,
    evaluate,
    evaluate_each,
    generator_figures,
    pretraining_loss,
)
from supernet.model import TextShape
from supernet.replaced_tokens import fixed_uniforms, replace_tokens, sample
from supernet.settings import AlignSettings, PretrainingSettings, SpaceSettings
from supernet.space import Architecture
from supernet.training import train

PATH = Architecture.parse("attention-feed_forward-conv3")
OTHER = Architecture.parse("conv3-attention-identity")


@pytest.fixture
def model():
    return supernet(dropout=0.0, **REPLACED_TOKENS)


@pytest.fixture
def batch():
    return batches(settings()).at(0)


def train_replaced(recipe=None, **changes):
    return train_plainly(recipe or settings(steps=20), shape=REPLACED_TOKENS, **changes)


def test_a_token_is_sampled_as_often_as_the_softmax_says():
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0])
    uniform_N = (torch.arange(1000) + 0.5) / 1000
    counts = sample(logits_V.expand(1000, 4), uniform_N).bincount(minlength=4)
    torch.testing.assert_close(counts / 1000, logits_V.softmax(0), atol=2e-3, rtol=0.0)


def test_masked_positions_alone_are_filled_and_a_token_that_is_the_original_counts_as_original():
    ids_BT = torch.tensor([[1, 3, 7, 8], [1, 3, 0, 0]])
    masked_N, targets_N = torch.tensor([1, 3, 5]), torch.tensor([6, 8, 9])
    logits_NV = F.one_hot(torch.tensor([5, 8, 4]), 10) * 100.0
    found = replace_tokens(Batch(ids_BT, ids_BT > 0, masked_N, targets_N), logits_NV, torch.rand(3))
    assert found.input_ids_BT.tolist() == [[1, 5, 7, 8], [1, 4, 0, 0]]
    assert found.masked_N.tolist() == [0, 1, 2, 3, 4, 5]  # every real token, special ones too
    assert found.targets_N.tolist() == [0, 1, 0, 0, 0, 1]
    assert ids_BT[0, 1] == 3


def test_the_losses_are_those_computed_by_hand(model, batch):
    torch.manual_seed(7)
    found = pretraining_loss(model, PATH, batch)
    real_BT, generator = batch.attention_mask_BT, model.generator
    hidden_BTD = generator.projection(model.stem(batch.input_ids_BT))
    for number, name in enumerate(("attention", "feed_forward")):
        hidden_BTD = generator.chain.layers[number][name](hidden_BTD, real_BT)
    masked_ND = hidden_BTD.flatten(0, 1)[batch.masked_N]
    logits_NV = generator.head(masked_ND, model.stem.tokens.weight)
    of_masked_N = -logits_NV.log_softmax(-1)[torch.arange(batch.num_targets), batch.targets_N]
    torch.testing.assert_close(found.generator_sum, of_masked_N.sum())

    seen = found.seen
    last_BTD = model.hidden(PATH, seen.input_ids_BT, real_BT)
    z_BT = model.head.prediction(F.gelu(model.head.dense(last_BTD)))[..., 0]
    replaced_BT = torch.zeros_like(z_BT)
    original = batch.input_ids_BT.flatten().clone()
    original[batch.masked_N] = batch.targets_N
    replaced_BT[seen.input_ids_BT != original.view_as(seen.input_ids_BT)] = 1.0
    assert replaced_BT.any() and seen.num_targets == batch.num_tokens
    expected = F.binary_cross_entropy_with_logits(
        z_BT[real_BT], replaced_BT[real_BT], reduction="sum"
    )
    torch.testing.assert_close(found.child_sum, expected)


def test_a_step_minimises_the_sum_of_both_means_and_its_row_has_them(model):
    recipe, observer = settings(steps=1), Recorder()
    gradients = {}

    class Keeping(PlainEngine):
        def update(self, learning_rate):
            gradients["bias"] = self.model.generator.head.bias.grad.clone()
            gradients["dense"] = self.model.head.dense.weight.grad.clone()

    walk = job(recipe, plan=lambda start, count: [(PATH,)] * count)
    train(Keeping(model, recipe), walk, observer, resume_from=None)
    step = walk.batches.at(0)
    (row,) = observer.intervals
    assert row["loss_nats"] == pytest.approx(
        row["generator_loss_nats"] + 50.0 * row["discriminator_loss_nats"]
    )
    assert row["generator_loss_nats"] == pytest.approx(math.log(VOCAB), abs=0.2)
    model.zero_grad()
    torch.manual_seed(zlib.crc32(f"dropout:0:0:0:0:{PATH}".encode()))
    found = pretraining_loss(model, PATH, step)
    loss = found.generator_sum / step.num_targets + 50.0 * found.child_sum / step.num_tokens
    loss.backward()
    assert gradients["dense"].any() and gradients["bias"].any()
    torch.testing.assert_close(gradients["bias"], model.generator.head.bias.grad)
    torch.testing.assert_close(gradients["dense"], model.head.dense.weight.grad)


def test_generator_and_path_move_and_operators_off_the_path_do_not():
    before = supernet(**REPLACED_TOKENS).state_dict()
    plan = lambda start, count: [(PATH,)] * count  # noqa: E731
    after = train_replaced(settings(steps=3), plan=plan).state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    inside = [f"chain.layers.{layer}.{name}." for layer, name in enumerate(PATH.operators)]
    assert all(name.startswith(("stem.", "head.", "generator.", *inside)) for name in moved)
    for part in ("stem.tokens", "head.dense", "generator.projection", "generator.chain", *inside):
        assert any(name.startswith(part) for name in moved)


def test_training_resumes_to_the_bit():
    undisturbed, files = train_replaced(), MemoryFiles()
    with pytest.raises(KeyboardInterrupt):
        train_replaced(files=files, observer=Recorder(stop_at=20))
    checkpoint = latest_checkpoint(files, "supernet")
    assert checkpoint.step == 10
    resumed = train_replaced(files=files, resume_from=checkpoint)
    assert largest_difference(undisturbed.state_dict(), resumed.state_dict()) == 0


def test_accumulation_divides_by_the_targets_of_the_whole_step():
    recipe = {"steps": 1, "learning_rate": 1e-3}
    rows = []
    for accumulation in (1, 2):
        observer = Recorder()
        train_replaced(
            settings(**recipe, accumulation=accumulation), observer=observer, dropout=0.0
        )
        rows += observer.intervals
    assert rows[0]["generator_loss_nats"] == pytest.approx(rows[1]["generator_loss_nats"])
    assert rows[0]["discriminator_loss_nats"] == pytest.approx(
        rows[1]["discriminator_loss_nats"], abs=0.1
    )


def test_alignment_is_measured_on_the_corrupted_batch(model):
    seen = []

    class Watched(Anchors):
        def distance(self, model, architecture, states, batch):
            seen.append((states[0], batch))
            return super().distance(model, architecture, states, batch)

    recipe = settings(steps=2, learning_rate=1e-4)
    align = AlignSettings(start=0.0, ramp=0.0, first_candidates=2, interval=1)
    anchors = Watched(align, SPACE, [batches(recipe).at(1)], steps=2, seed=0)
    train(PlainEngine(model, recipe), job(recipe, anchors=anchors), Recorder(), resume_from=None)
    assert anchors.current is not None and seen
    for states_BTD, batch in seen:
        assert batch.num_targets == batch.num_tokens and set(batch.targets_N.tolist()) <= {0, 1}
        assert states_BTD.shape[:2] == batch.input_ids_BT.shape


def test_scores_are_repeatable_and_the_same_alone_or_together(model, batch):
    one = evaluate(model, PATH, [batch])
    assert evaluate(model, PATH, [batch]) == one
    assert evaluate_each(model, [OTHER, PATH], [batch])[1] == one
    assert one[0] == pytest.approx(math.log(2), abs=0.1)  # fresh logits are near 0
    seen = as_scored(model, [batch])
    hits = 1 - seen[0].targets_N.double().mean().item()
    with torch.no_grad():
        model.head.prediction.bias.fill_(-20.0)
    assert evaluate(model, PATH, [batch])[1] == pytest.approx(hits)


def test_what_is_sampled_for_a_sequence_does_not_depend_on_its_batch(batch):
    rows = [
        Batch(batch.input_ids_BT[row : row + 1], batch.attention_mask_BT[row : row + 1], *place)
        for row in range(len(batch.input_ids_BT))
        if len((place := _of_row(batch, row))[0])
    ]
    torch.testing.assert_close(
        torch.cat([fixed_uniforms(row) for row in rows]), fixed_uniforms(batch), rtol=0, atol=0
    )
    assert len(set(fixed_uniforms(batch).tolist())) > batch.num_targets // 2


def _of_row(batch, row):
    length = batch.input_ids_BT.shape[1]
    chosen = batch.masked_N // length == row
    return batch.masked_N[chosen] % length, batch.targets_N[chosen]


def test_scoring_does_not_touch_the_random_numbers_of_training(model, batch):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate(model, PATH, [batch])
    assert torch.equal(torch.rand(2), expected)


def test_the_generator_s_figures_are_its_loss_and_the_entropy_of_the_share_of_replaced_tokens(
    model, batch
):
    figures = generator_figures(model, [batch])
    share = as_scored(model, [batch])[0].targets_N.double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert figures["replaced_entropy_nats"] == pytest.approx(entropy)
    assert figures["generator_loss_nats"] == pytest.approx(math.log(VOCAB), abs=0.2)
    assert generator_figures(supernet(), [batch]) == {}


def test_a_training_learns_to_tell_replaced_tokens_of_a_generator_that_knows_nothing():
    observer, held_out = Recorder(), [batches(settings(), seed=1).at(0)]
    recipe = settings(learning_rate=1e-2, steps=60, checkpoint_steps=60)
    plan = lambda start, count: [(PATH,)] * count  # noqa: E731
    train_replaced(recipe, observer=observer, plan=plan, probe_paths=[PATH], probe_batches=held_out)
    (probe,) = observer.probes
    assert probe["val_loss_nats"] < math.log(2)
    assert {"generator_loss_nats", "replaced_entropy_nats"} <= probe.keys()
    first, last = observer.intervals[0], observer.intervals[-1]
    assert last["loss_nats"] < first["loss_nats"]


def test_a_child_costs_its_stem_chain_and_discriminator_without_the_generator(model):
    cost = CostModel(SPACE, model.shape).cost(PATH)
    alone = supernet(**REPLACED_TOKENS)
    parts = [alone.stem, alone.head]
    parts += [alone.operator(layer, name) for layer, name in enumerate(PATH.operators)]
    assert cost.num_params == sum(count_params(part) for part in parts)
    assert count_params(alone.head) == 16 * 16 + 16 + 16 + 1


def test_interference_is_measured_on_the_corrupted_batch(model, batch):
    rows = measure_interference(model, [PATH, PATH], batch)
    assert rows and all(row.gradient_cosine == 1 for row in rows)


@pytest.mark.parametrize(
    ("hidden_size", "settings_", "width"),
    [
        (768, {}, 256),
        (16, {}, 4),
        (128, {"generator_size": 1.0}, 128),
        (8, {"generator_heads": 8}, 8),
    ],
)
def test_a_generator_s_width_is_its_share_in_whole_heads(hidden_size, settings_, width):
    assert PretrainingSettings(**settings_).generator_width(hidden_size) == width


def test_a_generator_knows_distances_where_it_is_told_to(batch):
    told = supernet(dropout=0.0, **REPLACED_TOKENS, generator_relative_reach=4)
    seen = (batch.input_ids_BT, batch.attention_mask_BT, batch.masked_N)
    attention = told.generator.chain.layers[0]["attention"]
    with torch.no_grad():
        told.stem.positions.weight.zero_()
        ordered_NV = told.generator_logits(*seen)
        attention.bias.zero_()
        unordered_NV = told.generator_logits(*seen)
    assert attention.relative_reach == 4
    assert not torch.allclose(ordered_NV, unordered_NV)
    untold = supernet(dropout=0.0, **REPLACED_TOKENS)
    assert untold.generator.chain.layers[0]["attention"].relative_reach == 0


def test_the_shape_carries_the_objective_as_plain_values():
    space = SpaceSettings(layers=5, hidden_size=32)
    found = TextShape.of(
        space,
        vocab_size=9,
        max_length=7,
        pad_id=0,
        pretraining=PretrainingSettings(objective="replaced_tokens", generator_relative_reach=4),
    )
    assert (found.generator_hidden_size, found.generator_pairs) == (12, 3)
    assert found.generator_relative_reach == 4
    assert TextShape(**found.to_dict()) == found
    plain = TextShape.of(space, vocab_size=9, max_length=7, pad_id=0)
    assert plain.objective == "masked_lm" and not plain.generator_hidden_size


def test_an_evaluation_needs_a_masked_token(model, batch):
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(InvalidInput, match="at least one masked token"):
        evaluate(model, PATH, [Batch(batch.input_ids_BT, batch.attention_mask_BT, none, none)])
