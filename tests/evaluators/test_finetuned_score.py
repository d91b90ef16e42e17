"""Scores by short fine-tuning: as by hand, alike for all children, harmless to the weights."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import evaluators.finetuned_score
from evaluators.downstream import finetuning
from evaluators.downstream.finetuning import Recipe, finetune
from evaluators.downstream.glue import Example
from evaluators.downstream.heads import SentenceHead, TaskData
from evaluators.downstream.tasks import task_named
from evaluators.evaluator import Evaluator
from evaluators.finetuned_score import FinetunedScorer, ShortFinetuning, in_passes
from supernet.block_space import BlockSpace
from supernet.child_model import child_classifier
from supernet.data.masking import Batch
from supernet.data.vocabulary import make_tokenizer, save_tokenizer
from supernet.model import SuperNet, TextShape
from supernet.settings import DataSettings
from supernet.space import Architecture, OperatorSpec, SearchSpace
from tests.orchestrator.tiny_glue import sentences

SPACE = SearchSpace.uniform(
    2,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "identity": OperatorSpec.of("identity"),
    },
)
SIZES = {"vocab_size": 200, "max_length": 12, "pad_id": 0, "hidden_size": 16, "embedding_size": 8}
SHAPES = {
    "masked_lm": TextShape(**SIZES, dropout=0.1),
    "replaced_tokens": TextShape(
        **SIZES,
        dropout=0.1,
        objective="replaced_tokens",
        generator_hidden_size=4,
        generator_pairs=1,
        generator_heads=2,
        discriminator_weight=50.0,
    ),
}
SETTINGS = ShortFinetuning(
    recipe=Recipe(learning_rate=1e-2, epochs=1.0, seed=3, batch_size=16, max_steps=6),
    seeds=1,
    max_length=12,
    pooling="cls",
)
FIRST, SECOND, BLIND = (
    Architecture.parse(text)
    for text in ("attention-conv3", "attention-attention", "identity-identity")
)


def examples(count, seed):
    return [Example(text, None, label, i) for i, (text, label) in enumerate(sentences(count, seed))]


DATA = TaskData(task_named("sst2"), examples(60, 0), {"dev": examples(40, 1)}, {})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for text, _ in sentences(60, 0)]
    save_tokenizer(make_tokenizer(DataSettings(vocab_size=200), lambda: iter(texts)), folder)
    return AutoTokenizer.from_pretrained(folder)


def weights(shape):
    """Read-only, as evaluators map them."""
    torch.manual_seed(0)
    arrays = {name: tensor.numpy() for name, tensor in SuperNet(SPACE, shape).state_dict().items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def inherited(arrays, shape):
    ids_BT = torch.randint(5, 60, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids_BT, torch.ones(2, 12, dtype=torch.bool), torch.tensor([3]), torch.tensor([9]))
    return Evaluator(SPACE, shape, arrays, [batch], version="1")


def scorer(tokenizer, objective="masked_lm", **changes):
    shape = SHAPES[objective]
    settings = ShortFinetuning(**{**vars(SETTINGS), **changes})
    return FinetunedScorer(inherited(weights(shape), shape), DATA, tokenizer, settings)


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("wall_s", "finetune_s")} for row in rows]


@pytest.fixture
def outcomes(monkeypatch):
    """What every fine-tuning of a scorer came to."""
    found = []

    def spy(*arguments, **settings):
        found.append(finetune(*arguments, **settings))
        return found[-1]

    monkeypatch.setattr(evaluators.finetuned_score, "finetune", spy)
    return found


@pytest.mark.parametrize("objective", list(SHAPES))
def test_a_score_is_that_of_the_child_fine_tuned_by_hand(objective, tokenizer, outcomes):
    (row,) = scorer(tokenizer, objective).rows([FIRST])
    shape = SHAPES[objective]
    arrays = weights(shape)
    tensors = {name: torch.tensor(array) for name, array in arrays.items()}
    model = child_classifier(
        SPACE, shape, FIRST, tensors, num_labels=2, pooling="cls", seed=SETTINGS.recipe.seed
    )
    for name, tensor in model.magic_nas.state_dict().items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.data_ptr() != tensors[name].data_ptr()
    train = in_passes(DATA.train, SETTINGS.recipe)
    head = SentenceHead(TaskData(DATA.task, train, DATA.dev, {}), tokenizer, max_length=12)
    by_hand = finetune(model, head, SETTINGS.recipe, in_order=True)
    assert row["error"] is None
    assert row["finetuned_score"] == by_hand.headline == outcomes[0].headline
    assert by_hand.train_loss == outcomes[0].train_loss
    assert by_hand.steps == 6
    assert row["wall_s"] > row["finetune_s"] > 0
    assert row["val_loss_nats"] == inherited(arrays, shape).score(FIRST).val_loss_nats


def test_scores_do_not_depend_on_who_is_scored_before_and_shared_weights_stay(tokenizer, outcomes):
    one = scorer(tokenizer)
    before = {n: t.clone() for n, t in one._inherited.model.state_dict().items()}
    together = one.rows([FIRST, SECOND])
    losses = [outcome.train_loss for outcome in outcomes]
    assert losses[0] != losses[1]
    backwards = one.rows([SECOND]) + one.rows([FIRST])
    assert without_times(together) == without_times(backwards[::-1])
    assert losses == [outcome.train_loss for outcome in outcomes[2:]][::-1]
    for name, tensor in one._inherited.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_all_children_see_the_same_batches_and_begin_with_the_same_head(tokenizer, monkeypatch):
    seen = []
    call = finetuning._Collator.__call__

    def spy(self, features):
        batch = call(self, features)
        if "labels" in batch:
            seen[-1].append(batch["input_ids"].tolist())
        return batch

    heads = []
    make = evaluators.finetuned_score.child_classifier

    def made(*arguments, **settings):
        model = make(*arguments, **settings)
        heads.append({n: t.clone() for n, t in model.classifier.state_dict().items()})
        seen.append([])
        return model

    monkeypatch.setattr(finetuning._Collator, "__call__", spy)
    monkeypatch.setattr(evaluators.finetuned_score, "child_classifier", made)
    scorer(tokenizer).rows([FIRST, BLIND])
    assert len(seen[0]) == 6 > 60 / 16  # more than one pass over the examples
    assert seen[0] == seen[1]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_several_seeds_are_averaged_and_others_generators_left_as_they_were(tokenizer, outcomes):
    two = scorer(tokenizer, seeds=2)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    (row,) = two.rows([FIRST])
    assert (random.random(), np.random.random(), torch.rand(1)) == expected
    assert outcomes[0].train_loss != outcomes[1].train_loss
    assert row["finetuned_score"] == (outcomes[0].headline + outcomes[1].headline) / 2


def test_a_child_that_diverges_is_a_row_with_an_error(tokenizer):
    wild = Recipe(learning_rate=1e30, epochs=1.0, seed=3, batch_size=16, max_steps=6)
    (row,) = scorer(tokenizer, recipe=wild).rows([FIRST])
    assert "diverged; lower search.finetune.learning_rate" in row["error"]
    assert row["finetuned_score"] is None
    assert row["num_params"] > 0


def test_a_child_of_several_widths_computes_what_the_supernet_does():
    operators = {
        "att8": OperatorSpec.of("attention", heads=2, width=8),
        "ffn12": OperatorSpec.of("feed_forward", width=12),
        "identity": OperatorSpec.of("identity"),
    }
    space = BlockSpace((tuple(operators),) * 4, operators, 2)
    model = SuperNet(space, SHAPES["masked_lm"]).eval()
    child = Architecture.parse("att8-identity-ffn12-ffn12")
    made = child_classifier(
        space, model.shape, child, model.state_dict(), num_labels=3, pooling="mean", seed=0
    ).eval()
    ids_BT = torch.randint(5, 200, (2, 12))
    with torch.no_grad():
        expected_BTD = model.chain.leave(model.hidden(child, ids_BT))
        torch.testing.assert_close(made.magic_nas(ids_BT)[0], expected_BTD)


def test_passes_take_every_example_equally_often():
    recipe = Recipe(learning_rate=1e-3, epochs=1.0, seed=0, batch_size=5, max_steps=5)
    taken = in_passes(range(10), recipe)
    assert sorted(taken[:10]) == sorted(taken[10:20]) == list(range(10))
    assert len(taken) == 25 and len(set(taken[20:])) == 5
    assert taken == in_passes(range(10), recipe)
