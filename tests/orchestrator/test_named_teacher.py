"""Teachers of a run: the largest path, an export, and what cannot teach."""

import shutil
from pathlib import Path

import pytest

from orchestrator import load_config, run
from orchestrator.runs import Run
from orchestrator.store import RunStore
from orchestrator.teacher import _check_length, named_teacher
from supernet.errors import InvalidInput
from supernet.settings import PretrainingSettings, TeacherSettings


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """A BERT with the tokenizer of the tiny text."""
    from transformers import BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("teacher") / "bert"
    this = Run.open(trained_run)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=this.summary.vocab_size,
        intermediate_size=32,
        max_position_embeddings=16,
        **sizes,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    for path in (this.data_folder / "tokenizer").iterdir():
        shutil.copy(path, folder)
    return folder


def taught(folder: Path, model: str) -> Run:
    """The run with another teacher."""
    this = Run.open(folder)
    pretraining = PretrainingSettings(teacher=TeacherSettings(model=model))
    return Run(this.store, this.config.model_copy(update={"pretraining": pretraining}))


def test_the_largest_path_and_a_folder_teach_a_run(
    tiny_config: Path, teacher: Path, tmp_path: Path
) -> None:
    few = [
        "train.steps=20",
        "search.candidates=4",
        "retrain.controls=0",
        "train.sampler.name=uniform",
    ]
    for number, model in enumerate(("largest", teacher)):
        out = tmp_path / str(number)
        config = load_config(tiny_config, [*few, f"pretraining.teacher.model={model}"])
        stages = ("data", "train", "search", "retrain") if number else ("data", "train")
        run(config, out=out, local=True, only=stages)
        rows = RunStore(out).rows("train")
        assert rows and all(row["distillation_loss_nats"] > 0 for row in rows)
        alone = RunStore(out).rows("retrain")
        assert bool(alone) == bool(number)
        assert all(row["distillation_loss_nats"] > 0 for row in alone)


def test_no_teacher_and_the_largest_path_load_nothing(trained_run: Path) -> None:
    assert named_teacher(Run.open(trained_run)) is None
    assert named_teacher(taught(trained_run, "largest")) is None


def test_a_folder_s_logits_are_those_of_its_model(trained_run: Path, teacher: Path) -> None:
    import torch
    from transformers import AutoModelForMaskedLM

    this = taught(trained_run, str(teacher))
    found = named_teacher(this)
    assert found is not None and found.predict is not None and found.weight == 1.0
    (batch,) = this.eval_batches("valid", sequences=4)
    with torch.no_grad():
        expected = AutoModelForMaskedLM.from_pretrained(teacher)(
            batch.input_ids_BT, attention_mask=batch.attention_mask_BT.long()
        ).logits
        torch.testing.assert_close(
            found.predict(batch.input_ids_BT, batch.attention_mask_BT), expected
        )


def test_a_teacher_with_another_vocabulary_is_refused(
    trained_run: Path, teacher: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(teacher)
    tokenizer.add_tokens(["zzz"])
    tokenizer.save_pretrained(tmp_path)
    small = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertForMaskedLM(small).save_pretrained(tmp_path)
    with pytest.raises(
        InvalidInput, match=r"vocabulary of the run's data.*1 tokens, such as 'zzz'"
    ):
        named_teacher(taught(trained_run, str(tmp_path)))


def test_a_teacher_that_is_not_there_or_too_short_is_refused(
    trained_run: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="no folder|no config.json"):
        named_teacher(taught(trained_run, "/nowhere/at/all"))
    monkeypatch.chdir(teacher.parent)
    with pytest.raises(InvalidInput, match="must be a whole path"):
        named_teacher(taught(trained_run, "bert"))
    from transformers import BertConfig

    config = BertConfig.from_pretrained(teacher)
    config.max_position_embeddings = 8
    with pytest.raises(InvalidInput, match="the 16 positions.*knows 8"):
        _check_length("bert", config, 16)
