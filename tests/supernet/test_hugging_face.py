"""BERT's, RoBERTa's and ELECTRA's weights in a path: operators and ends are theirs, both ways."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    ElectraModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from orchestrator.export import to_hugging_face
from supernet.baselines import NAMED, baseline
from supernet.cost import CostModel, count_params
from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.hugging_face import (
    load_generator,
    load_hugging_face,
    store_generator,
    store_hugging_face,
)
from supernet.loss import pretraining_loss
from supernet.model import SuperNet, TextShape, meta_supernet
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    5,
    {
        "attention": OperatorSpec.of("attention", heads=4),
        "attention2": OperatorSpec.of("attention", heads=2),
        "near": OperatorSpec.of("attention", heads=4, relative_reach=2),
        "feed_forward": OperatorSpec.of("feed_forward", inner_size=48),
        "narrow": OperatorSpec.of("feed_forward", inner_size=8),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "identity": OperatorSpec.of("identity"),
    },
)
SHAPE = TextShape(
    vocab_size=60, max_length=9, pad_id=0, hidden_size=32, embedding_size=32, dropout=0.1
)
PATH = Architecture.parse("attention-feed_forward-identity-attention-feed_forward")
CLOSE = {"rtol": 0.0, "atol": 1e-5}
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SCALED = {"layers": 2, "hidden_size": 32, "heads": 4, "inner_size": 48}
CONFIGS = {"bert": BertConfig, "roberta": RobertaConfig, "electra": ElectraConfig}
OWN = {
    "bert": {},
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    "electra": {"embedding_size": 32},
}
"""By family, what differs from transformers' defaults in the published models."""


def shaken(model):
    """Weights unlike those that they begin with, for norms and biases begin alike everywhere."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def theirs(kind, *, seed=3, **settings):
    torch.manual_seed(seed)
    config_class = kind.config_class
    own = OWN[config_class.model_type]
    config = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 14, **own, **settings}
    arguments = {"add_pooling_layer": False} if kind in (BertModel, RobertaModel) else {}
    return shaken(kind(config_class(**config), **arguments))


def ours(family, *, seed=4, **sizes):
    torch.manual_seed(seed)
    text = {"vocab_size": 60, "max_length": 9}
    space, path, shape = baseline(f"{family}_base", **{**SCALED, **text, **sizes})
    return shaken(SuperNet(space, shape)), path


def some_inputs(*, padding, family="bert"):
    torch.manual_seed(5)
    real_BT = torch.ones(3, 9, dtype=torch.int64)
    if padding:
        real_BT[0, 4:] = 0
        real_BT[1, 8:] = 0
    pad = NAMED[f"{family}_base"].pad_id
    ids_BT = torch.randint(2, 60, (3, 9)).where(real_BT.bool(), pad)
    return ids_BT, real_BT, torch.randint(0, 2 if family != "roberta" else 1, (3, 9))


def assert_same_hidden(model, path, other, family, *, padding):
    ids_BT, real_BT, types_BT = some_inputs(padding=padding, family=family)
    with torch.no_grad():
        found_BTD = model.hidden(path, ids_BT, real_BT.bool(), types_BT)
        expected_BTD = other(
            ids_BT, attention_mask=real_BT, token_type_ids=types_BT
        ).last_hidden_state
    real_BT = real_BT.bool()
    assert expected_BTD.std() > 0.1
    torch.testing.assert_close(found_BTD[real_BT], expected_BTD[real_BT], **CLOSE)


@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize("kind", [BertModel, RobertaModel, ElectraModel])
def test_the_path_gives_a_model_s_hidden_states_and_the_model_the_path_s(kind, padding):
    family, other = kind.config_class.model_type, theirs(kind)
    model, path = ours(family)
    load_hugging_face(model, path, other)
    assert_same_hidden(model, path, other, family, padding=padding)

    another, back = ours(family, seed=6)[0], theirs(kind, seed=7)
    store_hugging_face(another, path, back)
    assert_same_hidden(another, path, back, family, padding=padding)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_what_was_loaded_and_stored_again_is_the_same_to_the_bit(family):
    kind = {"bert": BertModel, "roberta": RobertaModel, "electra": ElectraModel}[family]
    other, back = theirs(kind), theirs(kind, seed=8)
    model, path = ours(family, max_length=12 if family == "roberta" else 14)
    load_hugging_face(model, path, other)
    store_hugging_face(model, path, back)
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name]), name


@pytest.mark.parametrize("way", ["load", "store"])
@pytest.mark.parametrize("kind", [BertForMaskedLM, RobertaForMaskedLM, ElectraForPreTraining])
def test_the_head_gives_the_model_s_logits(kind, way):
    family, other = kind.config_class.model_type, theirs(kind)
    model, path = ours(family)
    {"load": load_hugging_face, "store": store_hugging_face}[way](model, path, other)
    ids_BT, real_BT, _ = some_inputs(padding=True, family=family)
    real_N = real_BT.flatten().nonzero()[:, 0]
    with torch.no_grad():
        found = model(path, ids_BT, real_BT.bool(), real_N)
        expected = other(ids_BT, attention_mask=real_BT).logits.flatten(0, 1)[real_N]
    if family == "electra":
        assert found.shape == (len(real_N), 2) and not found[:, 0].any()
        found = found[:, 1]
    torch.testing.assert_close(found, expected, **CLOSE)


def test_an_export_of_a_named_model_gives_the_model_s_logits():
    other = theirs(RobertaForMaskedLM)
    model, path = ours("roberta")
    load_hugging_face(model, path, other)
    ids_BT, real_BT, types_BT = some_inputs(padding=True, family="roberta")
    exported = to_hugging_face(model, path)
    with torch.no_grad():
        found_BTV = exported(ids_BT, real_BT, types_BT + 1).logits  # one type alone is every type
        expected_BTV = other(ids_BT, attention_mask=real_BT).logits
    real_BT = real_BT.bool()
    torch.testing.assert_close(found_BTV[real_BT], expected_BTV[real_BT], **CLOSE)
    assert exported.config.position_offset == 2 and exported.config.type_vocab_size == 1


def test_narrower_embeddings_are_electra_s():
    other = theirs(ElectraForPreTraining, embedding_size=16)
    model, path = ours("electra", embedding_size=16)
    load_hugging_face(model, path, other)
    assert_same_hidden(model, path, other.electra, "electra", padding=True)
    assert count_params(model.stem) + count_params(model.chain) == count_params(
        theirs(ElectraModel, embedding_size=16, max_position_embeddings=9)
    )


@pytest.mark.parametrize("way", ["load", "store"])
def test_generator_and_discriminator_are_electra_s(way):
    """With the embeddings shared, both models' logits and their losses on the same batch."""
    space, path, shape = baseline("electra_base", vocab_size=60, max_length=9, **SCALED)
    sizes = {"generator_hidden_size": 16, "generator_pairs": 2, "generator_heads": 2}
    model = shaken(SuperNet(space, TextShape(**{**shape.to_dict(), **sizes})))
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
    generator, discriminator = theirs(ElectraForMaskedLM, **small), theirs(ElectraForPreTraining)
    if way == "load":
        load_generator(model, generator)
        discriminator.electra.embeddings.load_state_dict(generator.electra.embeddings.state_dict())
        load_hugging_face(model, path, discriminator)
    else:
        store_generator(model, generator)
        store_hugging_face(model, path, discriminator)
    ids_BT, real_BT, _ = some_inputs(padding=True)
    masked_N, targets_N = torch.tensor([1, 10, 20]), torch.tensor([7, 8, 9])
    batch = Batch(ids_BT, real_BT.bool(), masked_N, targets_N)
    labels_BT = torch.full_like(ids_BT, -100)
    labels_BT.view(-1)[masked_N] = targets_N
    with torch.no_grad():
        found = pretraining_loss(model, path, batch)
        mlm = generator(ids_BT, attention_mask=real_BT, labels=labels_BT)
        logits_NV = model.generator_logits(ids_BT, real_BT.bool(), masked_N)
        torch.testing.assert_close(logits_NV, mlm.logits.flatten(0, 1)[masked_N], **CLOSE)
        torch.testing.assert_close(found.generator_sum / 3, mlm.loss)
        replaced_BT = torch.zeros_like(ids_BT)
        replaced_BT[real_BT.bool()] = found.seen.targets_N
        said = discriminator(found.seen.input_ids_BT, attention_mask=real_BT, labels=replaced_BT)
        torch.testing.assert_close(found.child_sum / real_BT.sum(), said.loss)


def test_a_masked_lm_of_electra_s_generator_goes_into_a_path():
    other = theirs(ElectraForMaskedLM, embedding_size=16)
    torch.manual_seed(4)
    shape = TextShape(**{**SHAPE.to_dict(), "embedding_size": 16})
    model = shaken(SuperNet(SPACE, shape))
    load_hugging_face(model, PATH, other)
    ids_BT, real_BT, _ = some_inputs(padding=True)
    real_N = real_BT.flatten().nonzero()[:, 0]
    with torch.no_grad():
        found_NV = model(PATH, ids_BT, real_BT.bool(), real_N)
        expected_BTV = other(ids_BT, attention_mask=real_BT).logits
    torch.testing.assert_close(found_NV, expected_BTV.flatten(0, 1)[real_N], **CLOSE)


@pytest.mark.parametrize("kind", [BertModel, RobertaModel, ElectraModel])
def test_the_base_models_have_as_many_parameters(kind):
    family = kind.config_class.model_type
    space, path, shape = baseline(f"{family}_base")
    positions = {"max_position_embeddings": 514 if family == "roberta" else 512}
    vocabulary = {"vocab_size": 50265 if family == "roberta" else 30522}
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    own = {**OWN[family], "intermediate_size": 3072, **base, **positions, **vocabulary}
    if family == "electra":
        own["embedding_size"] = 768
    arguments = {} if family == "electra" else {"add_pooling_layer": False}
    with torch.device("meta"):
        other = kind(kind.config_class(**own), **arguments)
    model = meta_supernet(space, shape)
    expected = count_params(other)
    assert count_params(model.stem) + count_params(model.chain) == expected
    assert 108e6 < expected < 125e6
    cost = CostModel(space, shape).cost(path)
    assert cost.num_params == expected + count_params(model.head)


def test_two_layers_at_base_width_give_roberta_s_hidden_states():
    wide = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
    other = theirs(RobertaModel, **wide)
    space, path, shape = baseline("roberta_base", layers=2, vocab_size=60, max_length=9)
    model = SuperNet(space, shape).eval()
    load_hugging_face(model, path, other)
    assert_same_hidden(model, path, other, "roberta", padding=True)


def test_operators_off_the_path_and_the_head_stay_where_the_model_has_none():
    torch.manual_seed(4)
    model = SuperNet(SPACE, SHAPE).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_hugging_face(model, PATH, theirs(BertModel))
    changed = {
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    }
    on_path = [f"chain.layers.{layer}.{name}." for layer, name in enumerate(PATH.operators)]
    assert changed
    assert all(name.startswith(("stem.", *on_path)) for name in changed)


@pytest.mark.parametrize(
    ("path", "kind", "settings", "message"),
    [
        ("attention-feed_forward-identity-identity-identity", BertModel, {}, "as many pairs"),
        ("feed_forward-attention-identity-attention-feed_forward", BertModel, {}, "as many pairs"),
        ("attention-conv3-identity-attention-feed_forward", BertModel, {}, "as many pairs"),
        ("attention2-feed_forward-identity-attention-feed_forward", BertModel, {}, "4 heads"),
        ("near-feed_forward-identity-attention-feed_forward", BertModel, {}, "relative_reach of 2"),
        ("attention-narrow-identity-attention-feed_forward", BertModel, {}, "the model's sizes"),
        (str(PATH), BertModel, {"vocab_size": 61}, "the model's sizes"),
        (str(PATH), BertModel, {"max_position_embeddings": 8}, "the model's sizes"),
        (str(PATH), BertModel, {"hidden_act": "relu"}, "'relu'"),
        (str(PATH), BertModel, {"layer_norm_eps": 1e-5}, "1e-12 and 1e-05"),
        (str(PATH), RobertaModel, {"layer_norm_eps": 1e-12}, "position_offset 2, but got 0"),
        (str(PATH), ElectraForPreTraining, {}, "one for replaced_tokens.*its .electra"),
        (str(PATH), BertForMaskedLM, {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
@pytest.mark.parametrize("copy", [load_hugging_face, store_hugging_face])
def test_a_model_that_does_not_fit_is_refused_and_nothing_is_copied(
    copy, path, kind, settings, message
):
    torch.manual_seed(4)
    model, other = SuperNet(SPACE, SHAPE).eval(), theirs(kind, **settings)
    before = [tensor.clone() for tensor in (*model.parameters(), *other.parameters())]
    with pytest.raises(InvalidInput, match=message):
        copy(model, Architecture.parse(path), other)
    after = [*model.parameters(), *other.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_a_generator_is_refused_where_there_is_none():
    with pytest.raises(InvalidInput, match="'masked_lm': set pretraining.objective"):
        load_generator(SuperNet(SPACE, SHAPE), theirs(ElectraForMaskedLM))
