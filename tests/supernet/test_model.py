"""The super-net: a child's logits, the ends of the chain, and what is refused."""

import subprocess
import sys

import pytest
import torch

from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape, meta_supernet
from supernet.settings import SpaceSettings
from supernet.space import Architecture, OperatorSpec, SearchSpace

SPACE = SearchSpace.uniform(
    3,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "feed_forward": OperatorSpec.of("feed_forward"),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
    },
)
PATH = Architecture.parse("attention-conv3-feed_forward")


def shape(**changes):
    sizes = {
        "vocab_size": 40,
        "max_length": 8,
        "pad_id": 0,
        "hidden_size": 16,
        "embedding_size": 16,
        "dropout": 0.1,
    }
    return TextShape(**{**sizes, **changes})


def supernet(space=SPACE, **changes):
    torch.manual_seed(0)
    return SuperNet(space, shape(**changes)).eval()


def some_batch():
    torch.manual_seed(1)
    real_BT = torch.ones(2, 8, dtype=torch.bool)
    real_BT[1, 5:] = False
    return torch.randint(1, 40, (2, 8)), real_BT


@pytest.mark.parametrize("embedding_size", [16, 6, 24])
def test_logits_at_masked_positions_are_those_of_the_full_computation(embedding_size):
    model, (input_ids_BT, real_BT) = supernet(embedding_size=embedding_size), some_batch()
    masked_N = torch.tensor([12, 1, 6])
    logits_NV = model(PATH, input_ids_BT, real_BT, masked_N)
    hidden_BTD = model.hidden(PATH, input_ids_BT, real_BT)
    full_BTV = model.head(hidden_BTD, model.stem.tokens.weight)
    assert hidden_BTD.shape == (2, 8, 16) and full_BTV.shape == (2, 8, 40)
    torch.testing.assert_close(logits_NV, full_BTV.flatten(0, 1)[masked_N])


def test_padding_does_not_reach_the_logits_of_real_tokens():
    model, (input_ids_BT, real_BT) = supernet(), some_batch()
    masked_N = real_BT.flatten().nonzero()[:, 0]
    other_BT = torch.where(real_BT, input_ids_BT, 39)
    torch.testing.assert_close(
        model(PATH, other_BT, real_BT, masked_N), model(PATH, input_ids_BT, real_BT, masked_N)
    )


def test_a_child_is_the_supernet_of_its_own_space():
    model, (input_ids_BT, real_BT) = supernet(), some_batch()
    child = SuperNet(SPACE.restricted_to(PATH), shape()).eval()
    weights = model.state_dict()
    child.load_state_dict({name: weights[name] for name in child.state_dict()})
    torch.testing.assert_close(
        child.hidden(PATH, input_ids_BT, real_BT), model.hidden(PATH, input_ids_BT, real_BT)
    )


def test_different_paths_give_different_hidden_states():
    model, (input_ids_BT, real_BT) = supernet(), some_batch()
    other = PATH.replace(1, "attention")
    assert not torch.allclose(
        model.hidden(PATH, input_ids_BT, real_BT), model.hidden(other, input_ids_BT, real_BT)
    )


def test_types_left_out_are_zeros_and_others_count():
    model, (input_ids_BT, real_BT) = supernet(), some_batch()
    zeros_BT, ones_BT = torch.zeros_like(input_ids_BT), torch.ones_like(input_ids_BT)
    left_out_BTD = model.hidden(PATH, input_ids_BT, real_BT)
    torch.testing.assert_close(model.hidden(PATH, input_ids_BT, real_BT, zeros_BT), left_out_BTD)
    assert not torch.allclose(model.hidden(PATH, input_ids_BT, real_BT, ones_BT), left_out_BTD)


def test_order_counts_even_where_no_operator_mixes_tokens():
    model = supernet()
    path = Architecture.parse("feed_forward-feed_forward-feed_forward")
    hidden_BTD = model.hidden(path, torch.full((1, 8), 7))
    assert not torch.allclose(hidden_BTD[0, 0], hidden_BTD[0, 1])


def test_the_padding_token_begins_as_zeros():
    model = supernet(pad_id=3)
    assert model.stem.tokens.weight[3].eq(0).all()
    assert model.stem.tokens.weight[0].ne(0).any()


def test_a_sequence_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match="at most 8 tokens.*got 9"):
        supernet().hidden(PATH, torch.ones(1, 9, dtype=torch.int64))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("attention", {"heads": 3}, "hidden_size=16 and heads=3"),
        ("pooling", {}, "unknown operator kind 'pooling'"),
        ("separable_conv", {"kernel": 3}, "kernel"),
    ],
)
@pytest.mark.parametrize("build", [SuperNet, meta_supernet])
def test_an_operator_that_cannot_be_built_is_refused(build, kind, settings, message):
    space = SearchSpace.uniform(1, {"odd": OperatorSpec.of(kind, **settings)})
    with pytest.raises(InvalidInput, match=message):
        build(space, shape())


def test_a_path_of_another_depth_is_refused():
    with pytest.raises(ValueError):
        supernet().hidden(Architecture.parse("attention-conv3"), some_batch()[0])


def test_a_meta_supernet_names_the_same_tensors_and_holds_none():
    model, meta = supernet(embedding_size=6), meta_supernet(SPACE, shape(embedding_size=6))
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert {name: tensor.shape for name, tensor in meta.state_dict().items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


def test_a_meta_supernet_is_there_without_pytorch_s_compiler():
    code = (
        "import sys\nfrom supernet.model import TextShape, meta_supernet\n"
        "from supernet.space import OperatorSpec, SearchSpace\n"
        f"meta_supernet({SPACE!r}, {shape()!r})\nprint('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_shape_comes_from_settings_and_reads_back():
    found = TextShape.of(SpaceSettings(hidden_size=32), vocab_size=99, max_length=7, pad_id=2)
    assert (found.hidden_size, found.embedding_size, found.vocab_size) == (32, 32, 99)
    assert TextShape(**found.to_dict()) == found
    narrow = SpaceSettings(hidden_size=32, embedding_size=8)
    assert TextShape.of(narrow, vocab_size=9, max_length=7, pad_id=2).embedding_size == 8
