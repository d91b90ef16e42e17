"""Models as ONNX files: outputs in onnxruntime, and what is refused without leaving a file."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, RobertaConfig, RobertaForQuestionAnswering

import orchestrator.onnx_export
from orchestrator.hugging_face_models import load_pretrained, save_pretrained
from orchestrator.onnx_export import export_onnx
from supernet.configuration_magic_nas import MagicNasConfig
from supernet.data.vocabulary import make_tokenizer, save_tokenizer
from supernet.errors import ExportDiffers, InvalidInput
from supernet.modeling_magic_nas import (
    MagicNasForMaskedLM,
    MagicNasForPreTraining,
    MagicNasForSequenceClassification,
)
from supernet.settings import DataSettings

OPERATORS = {
    "attention": {"kind": "attention", "heads": 2},
    "near": {"kind": "attention", "heads": 2, "relative_reach": 3},
    "conv5": {"kind": "separable_conv", "kernel_size": 5},
    "feed_forward": {"kind": "feed_forward"},
    "identity": {"kind": "identity"},
}
SIZES = {"vocab_size": 200, "hidden_size": 16, "max_position_embeddings": 12}


def with_other_weights(model):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = ["the shape of the array", "returns the sum of an array of numbers"] * 3
    save_tokenizer(make_tokenizer(DataSettings(vocab_size=200), lambda: iter(texts)), folder)
    return AutoTokenizer.from_pretrained(folder, model_max_length=12)


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("masked_lm")
    config = MagicNasConfig(layers=tuple(OPERATORS), operators=OPERATORS, embedding_size=8, **SIZES)
    save_pretrained(with_other_weights(MagicNasForMaskedLM(config)), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, masked_lm):
    """A classifier of all our operators on the mean of its tokens, its ONNX file beside it."""
    folder = tmp_path_factory.mktemp("classifier")
    model, tokenizer = load_pretrained(
        str(masked_lm), "sequence_classification", num_labels=3, classifier_pooling="mean"
    )
    save_pretrained(with_other_weights(model), tokenizer, folder)
    return folder


@pytest.fixture(scope="module")
def written(classifier):
    return export_onnx(str(classifier))


def test_the_file_gives_the_classifier_s_answers_on_padded_text(classifier, written):
    assert written.path == classifier / "model.onnx"
    assert written.kind == "sequence_classification" and written.longest == 12
    assert written.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert 0 < written.max_difference <= 1e-4
    model, tokenizer = load_pretrained(str(classifier), "sequence_classification")
    session = onnxruntime.InferenceSession(str(written.path))
    for texts in (["the"], ["the shape", "returns the sum of an array"], ["numbers"] * 6):
        inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=True)
        (found_BL,) = session.run(["logits"], {key: inputs[key].numpy() for key in written.inputs})
        with torch.no_grad():
            expected_BL = model(**inputs).logits
        assert found_BL.shape == (len(texts), 3)
        torch.testing.assert_close(torch.from_numpy(found_BL), expected_BL, rtol=0.0, atol=1e-4)


def test_a_process_with_onnxruntime_alone_gets_the_model_s_answers(classifier, written, tmp_path):
    model, tokenizer = load_pretrained(str(classifier), "sequence_classification")
    texts = [("the shape", "an array"), ("returns the sum", "of numbers of the array")]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=True)
    save_file(dict(inputs), tmp_path / "inputs.safetensors")
    files = [written.path, tmp_path / "inputs.safetensors", tmp_path / "outputs.safetensors"]
    probe = Path(__file__).with_name("onnx_probe.py")
    command = [sys.executable, "-I", str(probe), *map(str, files)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected_BL = model(**inputs).logits
    found_BL = load_file(tmp_path / "outputs.safetensors")["logits"]
    torch.testing.assert_close(found_BL, expected_BL, rtol=0.0, atol=1e-4)


def test_batch_and_length_are_dynamic_and_named(written):
    session = onnxruntime.InferenceSession(str(written.path))
    assert [given.shape for given in session.get_inputs()] == [["batch", "length"]] * 3
    assert session.get_outputs()[0].shape == ["batch", 3]


def test_any_hugging_face_model_is_written_with_the_inputs_it_takes(tokenizer, tmp_path):
    config = RobertaConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        type_vocab_size=1,
        pad_token_id=0,
        **{**SIZES, "max_position_embeddings": 11},
    )
    save_pretrained(with_other_weights(RobertaForQuestionAnswering(config)), tokenizer, tmp_path)
    written = export_onnx(str(tmp_path), out=tmp_path / "made" / "answers.onnx")
    assert written.inputs == ("input_ids", "attention_mask")
    assert written.outputs == ("start_logits", "end_logits")
    assert written.longest == 10  # RoBERTa counts positions from behind padding's
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["answers.onnx"]


def test_outputs_that_differ_leave_the_older_file(classifier, written, monkeypatch):
    before = written.path.read_bytes()

    def write_another(traced, file, *, model):
        shutil.copy(written.path, file)
        with torch.no_grad():
            traced.model.classifier.output.bias[1] += 2e-4

    monkeypatch.setattr(orchestrator.onnx_export, "_write", write_another)
    with pytest.raises(ExportDiffers, match="within 0.0001, but .* differ by 0.0002; nothing was"):
        export_onnx(str(classifier))
    assert written.path.read_bytes() == before
    assert not list(classifier.glob(".model*"))


def test_a_model_that_has_to_look_at_its_values_is_refused(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "looking.py").write_text(LOOKING)
    monkeypatch.syspath_prepend(tmp_path)
    config = MagicNasConfig(
        layers=("odd",), operators={"odd": {"kind": "looking:Odd"}}, num_labels=2, **SIZES
    )
    folder = tmp_path / "model"
    save_pretrained(MagicNasForSequenceClassification(config), tokenizer, folder)
    with pytest.raises(InvalidInput, match="must be able to express every operator"):
        export_onnx(str(folder))
    assert not list(folder.glob("*onnx*")) and not list(folder.glob(".model*"))


LOOKING = """
import torch

class Odd(torch.nn.Module):
    def __init__(self, *, hidden_size, dropout):
        super().__init__()

    def forward(self, hidden_BTD, mask_BT):
        return hidden_BTD * hidden_BTD.sum().item() if hidden_BTD.sum() > 0 else hidden_BTD

    def flops(self, length):
        return 0
"""


def test_a_head_that_the_model_lacks_is_refused(masked_lm):
    with pytest.raises(InvalidInput, match="fine-tune the model for this use first"):
        export_onnx(str(masked_lm), kind="question_answering")


def test_where_the_file_cannot_be_is_refused(masked_lm, tmp_path):
    with pytest.raises(InvalidInput, match="add --out FILE.onnx"):
        export_onnx("nobody/has-this-model")
    with pytest.raises(InvalidInput, match="is a folder; add a name"):
        export_onnx(str(masked_lm), out=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="must be writable"):
        export_onnx(str(masked_lm), out=tmp_path / "file" / "model.onnx")


def test_the_command_names_the_packages_that_are_missing(command, masked_lm, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name)
    )
    done = command("onnx", masked_lm)
    assert done.code == 2
    assert "onnxscript cannot be imported; pip install 'magic-nas[onnx]'" in done.err


def test_the_command_says_what_it_wrote(command, masked_lm, tmp_path):
    done = command("onnx", masked_lm, "--out", tmp_path / "m.onnx", "--task", "features")
    assert done.code == 0, done.err
    assert f"{tmp_path / 'm.onnx'}: features, input_ids, attention_mask" in done.out
    assert "to last_hidden_state, any batch, 2 to 12 tokens" in done.out
    assert Path(tmp_path / "m.onnx").stat().st_size > 0


def test_a_discriminator_is_written_as_what_it_was_saved_as(tmp_path, tokenizer):
    config = MagicNasConfig(layers=tuple(OPERATORS), operators=OPERATORS, embedding_size=8, **SIZES)
    save_pretrained(with_other_weights(MagicNasForPreTraining(config)), tokenizer, tmp_path / "rtd")
    written = export_onnx(str(tmp_path / "rtd"))
    assert written.kind == "replaced_tokens"
    assert 0 < written.max_difference <= 1e-4
    (output,) = onnxruntime.InferenceSession(str(written.path)).get_outputs()
    assert len(output.shape) == 2  # a logit per token
