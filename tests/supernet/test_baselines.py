"""Named architectures: what they expand to in a configuration, and what is refused."""

import pytest
import torch

from orchestrator.config import load
from supernet.baselines import NAMED, baseline
from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.settings import SpaceSettings


@pytest.mark.parametrize("name", NAMED)
def test_a_named_model_is_one_path_at_any_size(name):
    sizes = {"layers": 3, "hidden_size": 128, "vocab_size": 99, "max_length": 7, "pad_id": 2}
    space, path, shape = baseline(name, **sizes)
    assert str(path) == "-".join(["attention-feed_forward"] * 3)
    assert space.size == 1 and space.contains(path)
    assert dict(space.operators["attention"].settings)["heads"] == 2
    assert dict(space.operators["feed_forward"].settings)["inner_size"] == 512
    assert (shape.vocab_size, shape.max_length, shape.pad_id) == (99, 7, 2)
    assert shape.objective == NAMED[name].objective
    assert TextShape(**shape.to_dict()) == shape


def test_roberta_s_epsilon_reaches_every_normalisation():
    space, _, shape = baseline("roberta_base", layers=1, hidden_size=16, vocab_size=9)
    norms = [m for m in SuperNet(space, shape).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 4 and {norm.eps for norm in norms} == {1e-5}


def test_an_epsilon_of_the_space_leaves_a_candidate_its_own():
    space = SpaceSettings(
        layer_norm_eps=1e-6,
        candidates={
            "attention": {"kind": "attention", "layer_norm_eps": 1e-3},
            "conv3": {"kind": "separable_conv"},
            "identity": {"kind": "identity"},
        },
    ).build()
    found = {name: dict(spec.settings) for name, spec in space.operators.items()}
    assert found["attention"]["layer_norm_eps"] == 1e-3
    assert found["conv3"]["layer_norm_eps"] == 1e-6 and not found["identity"]
    assert "layer_norm_eps" not in str(SpaceSettings().build().to_dict())


def test_a_configuration_may_name_one_and_reads_back_resolved(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("space: {named: roberta_base, layers: 4, hidden_size: 128, heads: 2}\n")
    config = load(path)
    assert config.space.build() == baseline("roberta_base", layers=4, hidden_size=128)[0]
    assert (config.space.layers, config.space.position_offset) == (8, 2)
    path.write_text(config.to_yaml())
    assert load(path) == config
    assert load(None, ["space.named=bert_base"]).space.layers == 24


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"named": "gpt2"}, "one of bert_base, roberta_base, electra_base, but got 'gpt2'"),
        ({"named": ["bert_base"]}, "named must be one of"),
        ({"named": "bert_base", "depth": 2}, "beside 'named' there may be layers.*got 'depth'"),
        ({"named": "bert_base", "layers": 0}, "layers must be a whole number from 1 up, but got 0"),
        ({"named": "bert_base", "layers": "two"}, "but got 'two'"),
        ({"named": "bert_base", "hidden_size": 100, "heads": 3}, "multiple of heads"),
        ({"named": "bert_base", "layers": 200}, "less than or equal to 256"),
    ],
)
def test_what_is_no_named_model_is_refused(tmp_path, space, message):
    path = tmp_path / "config.yaml"
    path.write_text(f"space: {space}\n")
    with pytest.raises(InvalidInput, match=message):
        load(path)
    if "gpt2" not in str(space):
        with pytest.raises(InvalidInput, match=message):
            baseline(**{"name" if k == "named" else k: v for k, v in space.items()})


def test_one_type_alone_is_that_of_every_token():
    space, path, shape = baseline(
        "roberta_base", layers=1, hidden_size=16, vocab_size=30, max_length=6
    )
    model = SuperNet(space, shape).eval()
    ids_BT = torch.randint(2, 30, (2, 6))
    with torch.no_grad():
        torch.testing.assert_close(
            model.hidden(path, ids_BT, None, torch.ones_like(ids_BT)), model.hidden(path, ids_BT)
        )
