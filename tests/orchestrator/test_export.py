"""The exported child: what it answers where magic-nas is not installed, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from orchestrator.export import (
    COPIED,
    ModelCard,
    export_model,
    model_card,
    to_hugging_face,
)
from orchestrator.hugging_face_models import load_tokenizer
from supernet.cost import count_params
from supernet.data.vocabulary import make_tokenizer, save_tokenizer
from supernet.errors import InvalidInput
from supernet.model import SuperNet, TextShape
from supernet.modeling_magic_nas import MagicNasForMaskedLM
from supernet.settings import DataSettings
from supernet.space import Architecture, OperatorSpec, SearchSpace

HERE = Path(__file__).parent
SPACE = SearchSpace.uniform(
    4,
    {
        "attention": OperatorSpec.of("attention", heads=2),
        "feed_forward": OperatorSpec.of("feed_forward"),
        "conv3": OperatorSpec.of("separable_conv", kernel_size=3),
        "identity": OperatorSpec.of("identity"),
        "gate": OperatorSpec.of("user_gate:Gate", inner_size=6),
    },
)
SHAPE = TextShape(
    vocab_size=200, max_length=12, pad_id=0, hidden_size=16, embedding_size=8, dropout=0.1
)
CHILD = Architecture.parse("attention-conv3-identity-feed_forward")
CUSTOM = Architecture.parse("gate-attention-gate-conv3")


@pytest.fixture(scope="module", autouse=True)
def user_operators():
    """The user's module can be imported, as it can from the folder where magic-nas is started."""
    sys.path.insert(0, str(HERE))
    yield
    sys.path.remove(str(HERE))


def child_model(architecture, shape=SHAPE):
    """A child whose weights are all unlike those that it begins with, padding's included."""
    torch.manual_seed(1)
    model = SuperNet(SPACE.restricted_to(architecture), shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def some_inputs():
    torch.manual_seed(2)
    real_BT = torch.ones(3, 12, dtype=torch.int64)
    real_BT[0, 7:] = 0
    real_BT[2, 3:] = 0
    return {
        "input_ids": torch.randint(5, 200, (3, 12)) * real_BT,
        "attention_mask": real_BT,
        "token_type_ids": torch.randint(0, 2, (3, 12)),
    }


def expected_hidden(model, architecture, inputs):
    with torch.no_grad():
        return model.hidden(
            architecture,
            inputs["input_ids"],
            inputs["attention_mask"].bool(),
            inputs["token_type_ids"],
        )


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "tokenizer"
    texts = ["the shape of the array", "returns the sum of an array of numbers"] * 3
    tokenizer = make_tokenizer(DataSettings(vocab_size=200), lambda: iter(texts))
    save_tokenizer(tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("exports")
    for name, architecture in (("child", CHILD), ("custom", CUSTOM)):
        export_model(
            child_model(architecture),
            architecture=architecture,
            tokenizer_folder=tokenizer_folder,
            folder=folder / name,
            card="# A card\n",
        )
        save_file(some_inputs(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def answers(exports, tmp_path_factory):
    """The folder of what a Python without magic-nas says about the exports."""
    folder = tmp_path_factory.mktemp("answers")
    caches = {name: str(folder / name) for name in ("HF_HOME", "HF_MODULES_CACHE")}
    command = [sys.executable, "-I", str(HERE / "export_probe.py"), str(exports), str(folder)]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **caches, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("name", "architecture"), [("child", CHILD), ("custom", CUSTOM)])
def test_an_export_computes_what_the_supernet_does(answers, name, architecture):
    model = child_model(architecture)
    hidden_BTD = expected_hidden(model, architecture, some_inputs())
    logits_BTV = model.head(hidden_BTD, model.stem.tokens.weight)
    found = load_file(answers / f"{name}.safetensors")
    close = {"rtol": 0.0, "atol": 1e-5}
    torch.testing.assert_close(found["hidden"], hidden_BTD, **close)
    torch.testing.assert_close(found["logits"], logits_BTV, **close)
    torch.testing.assert_close(found["as_tuple"], logits_BTV, **close)


@pytest.mark.parametrize("name", ["child", "custom"])
def test_an_export_that_is_loaded_and_saved_loads_again(answers, name):
    found = load_file(answers / f"{name}.safetensors")
    torch.testing.assert_close(found["again"], found["logits"], rtol=0.0, atol=1e-6)


def test_the_fill_mask_pipeline_gives_the_likeliest_tokens(answers, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    encoded = tokenizer(f"the {tokenizer.mask_token} of the array", return_tensors="pt")
    masked = encoded["input_ids"][0].tolist().index(tokenizer.mask_token_id)
    model = child_model(CHILD)
    logits_NV = model(CHILD, encoded["input_ids"], None, torch.tensor([masked]))
    best = logits_NV.softmax(-1)[0].topk(3)
    said = json.loads((answers / "said.json").read_text())["fill_mask"]
    assert [guess["token"] for guess in said] == best.indices.tolist()
    assert [guess["score"] for guess in said] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_an_export_loads_for_evaluation_and_its_tokenizer_knows_its_length(answers):
    said = json.loads((answers / "said.json").read_text())
    assert said["training"] is False
    assert said["max_length"] == 12


@pytest.mark.parametrize("name", ["child", "custom"])
def test_a_classifier_on_an_export_is_fine_tuned_saved_and_loaded(answers, name):
    said = json.loads((answers / "said.json").read_text())["classifier"][name]
    assert said == {
        "missing": [
            f"classifier.{layer}.{part}"
            for layer in ("dense", "output")
            for part in ("bias", "weight")
        ],
        "encoder_equal": True,
        "moved": True,
        "difference_after_loading": 0.0,
        "num_labels": 3,
    }


def test_a_question_answerer_on_an_export_is_fine_tuned_saved_and_loaded(answers):
    said = json.loads((answers / "said.json").read_text())["spans"]
    assert said["missing"] == ["spans.bias", "spans.weight"]
    assert said["encoder_equal"] and said["moved"] and said["difference_after_loading"] == 0.0


def test_an_export_carries_the_network_s_own_files_unchanged(exports):
    for name in COPIED:
        ours = Path(sys.modules["supernet.model"].__file__).with_name(name)
        assert (exports / "child" / name).read_bytes() == ours.read_bytes()
    assert (exports / "child" / "README.md").read_text() == "# A card\n"


def test_a_user_s_file_is_copied_with_its_import_of_our_operators(exports):
    text = (exports / "custom" / "custom_user__gate.py").read_text()
    assert "from .operators import FeedForward" in text
    assert not (exports / "child" / "custom_user__gate.py").exists()


def test_the_loss_is_the_cross_entropy_of_the_labelled_tokens_and_has_gradients():
    model, inputs = to_hugging_face(child_model(CHILD), CHILD), some_inputs()
    labels_BT = torch.full((3, 12), -100)
    labels_BT[0, 2], labels_BT[1, 5] = 17, 44
    output = model(**inputs, labels=labels_BT)
    picked_NV = output.logits[[0, 1], [2, 5]]
    torch.testing.assert_close(output.loss, F.cross_entropy(picked_NV, torch.tensor([17, 44])))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    in_tuple = model(**inputs, labels=labels_BT, return_dict=False)
    torch.testing.assert_close(in_tuple[0], output.loss)


def test_the_decoder_is_tied_and_counted_once():
    model = child_model(CHILD)
    exported = to_hugging_face(model, CHILD)
    assert exported.num_parameters() == count_params(model)
    assert exported.get_input_embeddings().weight is exported.magic_nas.stem.tokens.weight


@pytest.mark.parametrize("size", [190, 207])
def test_the_vocabulary_can_be_resized(size):
    model, inputs = to_hugging_face(child_model(CHILD), CHILD), some_inputs()
    inputs["input_ids"] = inputs["input_ids"].clamp(max=180)
    before_BTV = model(**inputs).logits
    model.resize_token_embeddings(size)
    logits_BTV = model(**inputs).logits
    assert logits_BTV.shape == (3, 12, size)
    assert model.config.vocab_size == size
    kept = min(size, 200)
    torch.testing.assert_close(logits_BTV[..., :kept], before_BTV[..., :kept])


def test_a_missing_head_begins_as_in_training(exports, tmp_path):
    to_hugging_face(child_model(CHILD), CHILD).magic_nas.save_pretrained(tmp_path)
    loaded, info = MagicNasForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"head"}
    trained = child_model(CHILD).stem.tokens.weight
    torch.testing.assert_close(loaded.get_input_embeddings().weight, trained)
    head = loaded.head
    assert head.bias.eq(0).all() and head.norm.weight.eq(1).all() and head.norm.bias.eq(0).all()
    assert head.transform.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_a_new_model_begins_as_in_training():
    torch.manual_seed(0)
    model = MagicNasForMaskedLM(to_hugging_face(child_model(CHILD), CHILD).config)
    tokens_VE = model.get_input_embeddings().weight
    assert tokens_VE[0].eq(0).all()
    assert tokens_VE[1:].std().item() == pytest.approx(0.02, rel=0.1)


def export_to(folder, tokenizer_folder, *, model=None, architecture=CHILD, card="new"):
    export_model(
        model or child_model(architecture),
        architecture=architecture,
        tokenizer_folder=tokenizer_folder,
        folder=folder,
        card=card,
    )


def test_pairs_of_texts_have_types_where_the_model_tells_them_apart(exports):
    tokenizer = load_tokenizer(str(exports / "child"))
    encoded = tokenizer("the array", "an array")
    second = encoded["input_ids"].index(tokenizer.sep_token_id) + 1
    types = encoded["token_type_ids"]
    assert set(types[:second]) == {0} and set(types[second:]) == {1}


def test_an_older_export_is_replaced_as_a_whole(tmp_path, tokenizer_folder):
    export_to(tmp_path / "export", tokenizer_folder, card="old")
    (tmp_path / "export" / "stale.txt").write_text("stale")
    export_to(tmp_path / "export", tokenizer_folder)
    assert (tmp_path / "export" / "README.md").read_text() == "new"
    assert not (tmp_path / "export" / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_that_fails_leaves_the_older_one(tmp_path, tokenizer_folder):
    export_to(tmp_path / "export", tokenizer_folder, card="old")
    with pytest.raises(Exception, match="nowhere"):
        export_to(tmp_path / "export", tmp_path / "nowhere")
    assert (tmp_path / "export" / "README.md").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path, tokenizer_folder):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(InvalidInput, match="holds something else"):
        export_to(tmp_path, tokenizer_folder)
    assert (tmp_path / "thesis.txt").exists()


def test_a_supernet_is_not_exported_whole(tmp_path, tokenizer_folder):
    supernet = SuperNet(SPACE, SHAPE)
    with pytest.raises(InvalidInput, match="restricted_to"):
        export_to(tmp_path / "export", tokenizer_folder, model=supernet)


OPERATOR = """
import torch
{imports}

class Odd(torch.nn.Module):
    def __init__(self, *, hidden_size, dropout):
        super().__init__()
        {extra}

    def forward(self, hidden_BTD, mask_BT):
        return hidden_BTD

    def flops(self, length):
        return 0
"""


@pytest.mark.parametrize(
    ("imports", "extra", "message"),
    [
        ("import tests_local", "pass", "imports 'tests_local'"),
        ("from supernet.text import TextStem", "pass", "imports 'supernet.text'"),
        ("import supernet.operators", "pass", "imports 'supernet.operators'"),
        ("", "self.register_buffer('table', torch.ones(2), persistent=False)", "has 'table'"),
        ("", "self.scale = torch.ones(2)", "has 'scale'"),
    ],
)
def test_an_operator_that_cannot_stand_alone_is_refused(
    tmp_path, tokenizer_folder, monkeypatch, imports, extra, message
):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_operators", raising=False)
    (tmp_path / "tests_local.py").write_text("")
    (tmp_path / "odd_operators.py").write_text(OPERATOR.format(imports=imports, extra=extra))
    space = SearchSpace.uniform(1, {"odd": OperatorSpec.of("odd_operators:Odd")})
    with pytest.raises(InvalidInput, match=message):
        export_to(
            tmp_path / "export",
            tokenizer_folder,
            model=SuperNet(space, SHAPE),
            architecture=Architecture(("odd",)),
        )
    assert not (tmp_path / "export").exists()


def test_the_card_gives_the_figures_and_front_matter():
    card = ModelCard(
        run="docs-8",
        architecture=CHILD,
        num_params=1_234_567,
        flops=89_000_000,
        test_loss_nats=4.5678,
        baseline_loss_nats=4.9,
        baseline_num_params=1_300_000,
        unigram_nats=5.8,
        data="docstrings",
    )
    text = model_card(card)
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "library_name: transformers" in head and "pipeline_tag: fill-mask" in head
    for part in (
        "docs-8",
        str(CHILD),
        "1.23 M",
        "89 M",
        "4.5678",
        "4.9000",
        "5.8000",
        "docstrings",
    ):
        assert part in body
