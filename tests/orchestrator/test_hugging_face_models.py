"""Models by folder or name: what is loaded, for which use, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    CanineConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from orchestrator.hugging_face_models import (
    KINDS,
    kind_of,
    load_pretrained,
    load_tokenizer,
    save_pretrained,
)
from supernet.configuration_magic_nas import MagicNasConfig
from supernet.data.vocabulary import make_tokenizer, save_tokenizer
from supernet.errors import InvalidInput
from supernet.modeling_magic_nas import MagicNasForMaskedLM
from supernet.settings import DataSettings

HERE = Path(__file__).parent
SIZES = {"vocab_size": 200, "hidden_size": 16, "max_position_embeddings": 12}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["the shape of the array", "returns the sum of an array of numbers"] * 3
    save_tokenizer(make_tokenizer(DataSettings(vocab_size=200), lambda: iter(texts)), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def export(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "export"
    torch.manual_seed(0)
    model = MagicNasForMaskedLM(MagicNasConfig(embedding_size=8, **SIZES))
    save_pretrained(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("models") / "bert"
    config = BertConfig(
        num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, pad_token_id=0, **SIZES
    )
    save_pretrained(BertForMaskedLM(config), tokenizer, folder)
    return folder


@pytest.fixture
def copied(export, tmp_path):
    folder = tmp_path / "copied"
    shutil.copytree(export, folder)
    return folder


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("export", kind) for kind in KINDS]
    + [("bert", kind) for kind in KINDS if kind != "replaced_tokens"],
)
def test_a_model_is_loaded_for_every_use_with_its_encoder(request, name, kind):
    folder = str(request.getfixturevalue(name))
    model, tokenizer = load_pretrained(folder, kind)
    encoder, _ = load_pretrained(folder, "features")
    for name, tensor in encoder.state_dict().items():
        if "pooler" not in name:
            assert model.base_model.state_dict()[name].equal(tensor)
    assert not model.training and model.dtype == torch.float32
    inputs = tokenizer("the shape", "an array", return_tensors="pt")
    shape = (1, inputs["input_ids"].shape[1])
    expected = {
        "masked_lm": (*shape, 200),
        "replaced_tokens": shape,
        "sequence_classification": (1, 2),
        "question_answering": shape,
        "features": (*shape, 16),
    }
    assert model(**inputs)[0].shape == expected[kind]


def test_the_configuration_can_be_changed(export, bert):
    for folder in (export, bert):
        model, _ = load_pretrained(
            str(folder), "sequence_classification", num_labels=3, problem_type="regression"
        )
        assert model.config.num_labels == 3 and model.config.problem_type == "regression"
    assert load_pretrained(str(export), "masked_lm", dropout=0.3)[0].config.dropout == 0.3
    with pytest.raises(InvalidInput, match=r"configuration of .*\(magic_nas\) has no dropuot"):
        load_pretrained(str(export), "masked_lm", dropuot=0.3)


@pytest.mark.parametrize("name", ["export", "bert"])
def test_a_head_for_other_labels_begins_anew(request, tmp_path, name):
    folder = str(request.getfixturevalue(name))
    model, tokenizer = load_pretrained(folder, "sequence_classification", num_labels=3)
    inputs = tokenizer(["the shape", "an array"], return_tensors="pt", padding=True)
    model(**inputs, labels=torch.tensor([0, 2])).loss.backward()
    save_pretrained(model, tokenizer, tmp_path)
    again, _ = load_pretrained(str(tmp_path), "sequence_classification", new_head=False)
    assert again(**inputs).logits.equal(model(**inputs).logits)
    for labels, targets in ((1, torch.tensor([0.5, 3.0])), (2, torch.tensor([0, 1]))):
        other, _ = load_pretrained(str(tmp_path), "sequence_classification", num_labels=labels)
        assert other(**inputs, labels=targets).loss > 0
        assert other.config.num_labels == labels
    assert kind_of(str(tmp_path)) == "sequence_classification"
    with pytest.raises(InvalidInput, match="tensors are missing or of another size"):
        load_pretrained(str(tmp_path), "sequence_classification", num_labels=2, new_head=False)


def test_a_model_without_the_head_is_refused_where_none_may_begin(export, bert):
    for folder in (export, bert):
        with pytest.raises(InvalidInput, match="fine-tune the model for this use first"):
            load_pretrained(str(folder), "question_answering", new_head=False)
        load_pretrained(str(folder), "masked_lm", new_head=False)


def test_the_code_of_a_folder_is_not_run(copied, tmp_path):
    mark = tmp_path / "was-run"
    for file in copied.glob("*.py"):
        file.write_text(f"open({str(mark)!r}, 'w')\n")
    load_pretrained(str(copied), "masked_lm")
    change(copied / "config.json", model_type="evil_nas")
    with pytest.raises(
        InvalidInput, match="code that comes with one is not run, but .* is 'evil_nas'"
    ):
        load_pretrained(str(copied), "masked_lm")
    assert not mark.exists()


def test_a_user_s_operator_is_imported_and_saved_with_the_model(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "my_own_gate.py").write_text((HERE / "user_gate.py").read_text())
    operators = {"gate": {"kind": "my_own_gate:Gate", "inner_size": 6}}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        config = MagicNasConfig(layers=("gate",), operators=operators, **SIZES)
        save_pretrained(MagicNasForMaskedLM(config), tokenizer, tmp_path / "model")
        model, _ = load_pretrained(str(tmp_path / "model"), "masked_lm")
    assert type(model.magic_nas.chain.layers[0]["gate"]).__module__ == "my_own_gate"
    listed = (tmp_path / "model/custom_operators.py").read_text()
    assert '"my_own_gate:Gate": Custom0' in listed
    assert (tmp_path / "model/custom_my__own__gate.py").exists()
    del sys.modules["my_own_gate"]
    with pytest.raises(InvalidInput, match="'my_own_gate:Gate', whose copy .* is not run"):
        load_pretrained(str(tmp_path / "model"), "masked_lm")


def test_a_folder_that_holds_no_model_is_refused(tmp_path, export):
    with pytest.raises(InvalidInput, match="has no config.json"):
        load_pretrained(str(tmp_path), "masked_lm")
    with pytest.raises(InvalidInput, match="name .*/export$"):
        load_pretrained(str(export.parent), "masked_lm")
    with pytest.raises(InvalidInput, match="is no folder"):
        load_pretrained(str(tmp_path / "absent"), "masked_lm")
    with pytest.raises(InvalidInput, match="is no folder"):
        load_pretrained(str(export / "config.json"), "masked_lm")
    with pytest.raises(InvalidInput, match="one of masked_lm, .* but got 'translation'"):
        load_pretrained(str(export), "translation")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "its weights cannot be loaded"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04K\x01."),
            "its weights cannot be loaded",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "its configuration cannot"),
        (lambda folder: change(folder / "config.json", hidden_size=32), "or of another size"),
        (lambda folder: change(folder / "config.json", layers=["attention"] * 3), "are missing"),
        (lambda folder: change(folder / "config.json", vocab_size="many"), "cannot be loaded"),
    ],
)
def test_a_damaged_model_is_refused(copied, spoil, message):
    spoil(copied)
    with pytest.raises(InvalidInput, match=message):
        load_pretrained(str(copied), "sequence_classification")


@pytest.mark.parametrize("name", ["export", "bert"])
def test_a_model_without_a_tokenizer_is_refused(request, tmp_path, name):
    folder = tmp_path / "bare"
    shutil.copytree(request.getfixturevalue(name), folder)
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(InvalidInput, match="tokenizer"):
        load_pretrained(str(folder), "masked_lm")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, tokenizer):
    model = MagicNasForMaskedLM(MagicNasConfig(**{**SIZES, "vocab_size": 30}))
    save_pretrained(model, tokenizer, tmp_path)
    with pytest.raises(InvalidInput, match="vocab_size is 30"):
        load_pretrained(str(tmp_path), "masked_lm")


def test_a_model_that_has_no_such_head_is_refused(tmp_path, tokenizer):
    config = GPT2Config(vocab_size=200, n_positions=12, n_embd=16, n_layer=1, n_head=2)
    save_pretrained(GPT2LMHeadModel(config), tokenizer, tmp_path / "gpt2")
    with pytest.raises(InvalidInput, match="class 'ForMaskedLM' for, but it is 'gpt2'"):
        load_pretrained(str(tmp_path / "gpt2"), "masked_lm")
    with pytest.raises(InvalidInput, match="say what it is for"):
        kind_of(str(tmp_path / "gpt2"))


def test_a_model_of_characters_is_refused(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InvalidInput, match=r"\(canine\) has no vocab_size: take another model"):
        load_tokenizer(str(tmp_path), config=CanineConfig())


def test_the_kind_is_read_from_what_a_model_was_saved_as(export, bert, tmp_path):
    assert kind_of(str(export)) == kind_of(str(bert)) == "masked_lm"
    model, tokenizer = load_pretrained(str(bert), "features")
    save_pretrained(model, tokenizer, tmp_path)
    assert kind_of(str(tmp_path)) == "features"


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="that can be reached, but its configuration cannot"):
        load_pretrained("nobody/has-this-model", "masked_lm")
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load_pretrained("not a name?", "masked_lm")
