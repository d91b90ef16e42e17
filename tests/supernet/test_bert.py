"""BERT's weights in a path: the operators are BERT's sublayers, the ends are its ends."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from supernet.bert import load_bert
from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    5,
    {
        "attention": OperatorSpec.of("attention", heads=4),
        "attention2": OperatorSpec.of("attention", heads=2),
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


def a_bert(bert_class=BertModel, **settings):
    torch.manual_seed(3)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 12,
    }
    bert = bert_class(BertConfig(**{**sizes, **settings})).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bert


@pytest.fixture
def model():
    torch.manual_seed(4)
    return SuperNet(SPACE, SHAPE).eval()


def some_inputs(*, padding):
    torch.manual_seed(5)
    real_BT = torch.ones(3, 9, dtype=torch.int64)
    if padding:
        real_BT[0, 4:] = 0
        real_BT[1, 8:] = 0
    return torch.randint(1, 60, (3, 9)), real_BT, torch.randint(0, 2, (3, 9))


@pytest.mark.parametrize("padding", [False, True])
def test_the_path_gives_bert_s_hidden_states(model, padding):
    bert = a_bert()
    load_bert(model, PATH, bert)
    input_ids_BT, real_BT, types_BT = some_inputs(padding=padding)
    with torch.no_grad():
        found_BTD = model.hidden(PATH, input_ids_BT, real_BT.bool(), types_BT)
        expected_BTD = bert(
            input_ids_BT, attention_mask=real_BT, token_type_ids=types_BT
        ).last_hidden_state
    real_BT = real_BT.bool()
    torch.testing.assert_close(found_BTD[real_BT], expected_BTD[real_BT], **CLOSE)


def test_the_head_gives_bert_s_logits(model):
    bert = a_bert(BertForMaskedLM)
    load_bert(model, PATH, bert)
    input_ids_BT, real_BT, _ = some_inputs(padding=True)
    masked_N = real_BT.flatten().nonzero()[:, 0]
    with torch.no_grad():
        found_NV = model(PATH, input_ids_BT, real_BT.bool(), masked_N)
        expected_BTV = bert(input_ids_BT, attention_mask=real_BT).logits
    torch.testing.assert_close(found_NV, expected_BTV.flatten(0, 1)[masked_N], **CLOSE)


def test_operators_off_the_path_and_the_head_stay_where_bert_has_none(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_bert(model, PATH, a_bert())
    changed = {
        name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()
    }
    on_path = [f"chain.layers.{layer}.{name}." for layer, name in enumerate(PATH.operators)]
    assert changed
    assert all(name.startswith(("stem.", *on_path)) for name in changed)


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("attention-feed_forward-identity-identity-identity", {}, "as many pairs"),
        ("feed_forward-attention-identity-attention-feed_forward", {}, "as many pairs"),
        ("attention-conv3-identity-attention-feed_forward", {}, "as many pairs"),
        ("attention2-feed_forward-identity-attention-feed_forward", {}, "4 heads"),
        ("attention-narrow-identity-attention-feed_forward", {}, "BERT's sizes"),
        (str(PATH), {"vocab_size": 61}, "BERT's sizes"),
        (str(PATH), {"max_position_embeddings": 8}, "BERT's sizes"),
        (str(PATH), {"hidden_act": "relu"}, "'relu'"),
        (str(PATH), {"layer_norm_eps": 1e-5}, "1e-05"),
    ],
)
def test_a_bert_that_does_not_fit_is_refused(model, path, settings, message):
    with pytest.raises(InvalidInput, match=message):
        load_bert(model, Architecture.parse(path), a_bert(**settings))
