"""The heads for fine-tuning: what they compute, their losses, and how they begin and are saved."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Trainer, TrainingArguments

from supernet.configuration_magic_nas import MagicNasConfig
from supernet.modeling_magic_nas import (
    MagicNasForMaskedLM,
    MagicNasForQuestionAnswering,
    MagicNasForSequenceClassification,
)

LENGTH = 12


def config(**settings):
    return MagicNasConfig(
        layers=("attention", "separable_conv", "feed_forward"),
        operators={
            "attention": {"kind": "attention", "heads": 2, "relative_reach": 3},
            "separable_conv": {"kind": "separable_conv", "kernel_size": 3},
            "feed_forward": {"kind": "feed_forward"},
        },
        vocab_size=100,
        hidden_size=16,
        embedding_size=8,
        max_position_embeddings=LENGTH,
        **settings,
    )


def inputs(count=4):
    torch.manual_seed(2)
    mask_BT = torch.ones(count, LENGTH, dtype=torch.int64)
    mask_BT[0, 5:] = 0
    return {
        "input_ids": torch.randint(5, 100, (count, LENGTH)) * mask_BT,
        "attention_mask": mask_BT,
        "token_type_ids": torch.randint(0, 2, (count, LENGTH)),
    }


def made(model_class, **settings):
    torch.manual_seed(1)
    return model_class(config(**settings)).eval()


@pytest.fixture(scope="module")
def masked_lm_folder(tmp_path_factory):
    """A masked LM whose weights are all unlike those that a model begins with."""
    folder = tmp_path_factory.mktemp("masked_lm")
    model = made(MagicNasForMaskedLM)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def test_a_sequence_s_label_is_read_from_its_first_token():
    model = made(MagicNasForSequenceClassification, num_labels=3)
    first_BD = model.magic_nas(**inputs())[0][:, 0]
    head = model.classifier
    pooled_BD = torch.tanh(first_BD @ head.dense.weight.T + head.dense.bias)
    expected_BL = pooled_BD @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(model(**inputs()).logits, expected_BL)
    torch.testing.assert_close(model(**inputs(), return_dict=False)[0], expected_BL)


def test_a_sequence_s_label_can_be_read_from_the_mean_of_its_real_tokens():
    model = made(MagicNasForSequenceClassification, num_labels=3, classifier_pooling="mean")
    assert list(model.state_dict()) == list(
        made(MagicNasForSequenceClassification, num_labels=3).state_dict()
    )
    hidden_BTD = model.magic_nas(**inputs())[0]
    mean_BD = torch.stack([hidden_BTD[0, :5].mean(0), *hidden_BTD[1:].mean(1)])
    head = model.classifier
    pooled_BD = torch.tanh(mean_BD @ head.dense.weight.T + head.dense.bias)
    expected_BL = pooled_BD @ head.output.weight.T + head.output.bias
    torch.testing.assert_close(model(**inputs()).logits, expected_BL)
    ids_BT = inputs()["input_ids"][1:]
    torch.testing.assert_close(
        model(ids_BT).logits, model(ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
    )


def test_padding_changes_nothing_of_a_mean():
    model = made(MagicNasForSequenceClassification, num_labels=3, classifier_pooling="mean")
    whole = inputs()
    short = {name: value_BT[:1, :5] for name, value_BT in whole.items()}
    torch.testing.assert_close(model(**whole).logits[:1], model(**short).logits)


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="'cls' or 'mean', but got 'max'"):
        made(MagicNasForSequenceClassification, classifier_pooling="max")


def test_the_head_drops_out_in_training_alone():
    model = made(MagicNasForSequenceClassification, num_labels=3)
    hidden_BTD = torch.ones(2, LENGTH, 16)
    assert model.classifier(hidden_BTD).equal(model.classifier(hidden_BTD))
    model.train()
    assert not model.classifier(hidden_BTD).equal(model.classifier(hidden_BTD))


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss", "problem"),
    [
        (1, torch.tensor([0.0, 2.5, 1.0, 5.0]), F.mse_loss, "regression"),
        (3, torch.tensor([0, 2, 1, 1]), F.cross_entropy, "single_label_classification"),
        (
            3,
            torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]]),
            F.binary_cross_entropy_with_logits,
            "multi_label_classification",
        ),
    ],
)
def test_the_loss_is_that_of_the_kind_of_problem(num_labels, labels, loss, problem):
    model = made(MagicNasForSequenceClassification, num_labels=num_labels)
    output = model(**inputs(), labels=labels)
    assert output.logits.shape == (4, num_labels)
    logits = output.logits.squeeze(-1) if num_labels == 1 else output.logits
    torch.testing.assert_close(output.loss, loss(logits, labels))
    assert model.config.problem_type == problem
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_kind_of_problem_can_be_set():
    model = made(MagicNasForSequenceClassification, num_labels=2, problem_type="regression")
    labels_BL = torch.randn(4, 2)
    output = model(**inputs(), labels=labels_BL)
    torch.testing.assert_close(output.loss, F.mse_loss(output.logits, labels_BL))


def test_answers_beyond_the_last_token_are_left_out_of_the_loss():
    model = made(MagicNasForQuestionAnswering, num_labels=3)
    start_B, end_B = torch.tensor([1, 2, 3, 50]), torch.tensor([4, 2, LENGTH, 60])
    output = model(**inputs(), start_positions=start_B, end_positions=end_B)
    assert output.start_logits.shape == output.end_logits.shape == (4, LENGTH)
    expected = F.cross_entropy(output.start_logits[:3], start_B[:3])
    expected = (expected + F.cross_entropy(output.end_logits[:2], end_B[:2])) / 2
    torch.testing.assert_close(output.loss, expected)
    as_tuple = model(**inputs(), return_dict=False)
    torch.testing.assert_close(as_tuple[1], output.end_logits)
    hidden_BTD = model.magic_nas(**inputs())[0]
    torch.testing.assert_close(output.start_logits, model.spans(hidden_BTD)[..., 0])


@pytest.mark.parametrize(
    ("model_class", "head"),
    [(MagicNasForSequenceClassification, "classifier"), (MagicNasForQuestionAnswering, "spans")],
)
def test_a_head_begins_anew_on_the_weights_of_a_masked_lm(masked_lm_folder, model_class, head):
    trained = MagicNasForMaskedLM.from_pretrained(masked_lm_folder).magic_nas.state_dict()
    model, info = model_class.from_pretrained(
        masked_lm_folder, num_labels=3, output_loading_info=True
    )
    assert {key.split(".")[0] for key in info["missing_keys"]} == {head}
    assert {key.split(".")[0] for key in info["unexpected_keys"]} == {"head"}
    loaded = model.magic_nas.state_dict()
    assert loaded.keys() == trained.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in trained.items())
    for name, parameter in getattr(model, head).named_parameters():
        if name.endswith("bias"):
            assert parameter.eq(0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35)


def test_trainer_fine_tunes_and_the_saved_model_is_equal(masked_lm_folder, tmp_path):
    model = MagicNasForSequenceClassification.from_pretrained(masked_lm_folder, num_labels=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = {**inputs(8), "labels": torch.arange(8) % 3}
    rows = [{name: tensor[row] for name, tensor in data.items()} for row in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0
    assert not any(model.state_dict()[name].equal(tensor) for name, tensor in before.items())

    trainer.save_model(str(tmp_path / "saved"))
    loaded = MagicNasForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert loaded.config.num_labels == 3
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor)


def test_a_saved_model_brings_the_code_that_loads_it(masked_lm_folder, tmp_path):
    model = MagicNasForQuestionAnswering.from_pretrained(masked_lm_folder)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == {
        "configuration_magic_nas.py",
        "custom_operators.py",
        "modeling_magic_nas.py",
        "operators.py",
        "text.py",
    }
    assert model.config.auto_map == {
        "AutoConfig": "configuration_magic_nas.MagicNasConfig",
        "AutoModelForMaskedLM": "modeling_magic_nas.MagicNasForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_magic_nas.MagicNasForQuestionAnswering",
    }
