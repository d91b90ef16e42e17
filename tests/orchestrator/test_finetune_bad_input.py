"""What cannot be fine-tuned is refused with exit code 2 and a sentence, before any training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaModel

from evaluators.downstream.finetuning import positions_of
from evaluators.downstream.heads import TaskData
from evaluators.downstream.tasks import task_named
from orchestrator.finetuning.teacher import load_teacher, teacher_logits
from supernet.errors import InvalidInput
from tests.orchestrator.tiny_glue import save_bert, write_squad, write_sst2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SST-2 and a tiny SQuAD 2.0."""
    folder = write_sst2(tmp_path_factory.mktemp("data"), counts={"train": 8, "dev": 4})
    return write_squad(folder)


@pytest.fixture(scope="module")
def bert(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 16 positions; not to be written into."""
    return save_bert(tmp_path_factory.mktemp("bert"), finished_run / "export", positions=16)


@pytest.fixture
def refused(
    command: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a fine-tuning that must be refused; returns the message."""

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a fine-tuning was begun")

    monkeypatch.setattr("orchestrator.finetuning.jobs.run_job", never)

    def run(model: object, *options: object, out: Path = tmp_path / "out") -> str:
        there = out.exists()
        done = command("finetune", model, "--data", data, "--out", out, "--local", *options)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert there or not out.exists()
        return str(done.err)

    return run


SST2 = ("--task", "sst2", "--set", "finetune.max_length=16")


def test_tasks(refused: Any, bert: Path) -> None:
    assert "did you mean 'sst2'" in refused(bert, "--task", "sst-2")
    assert "each named once" in refused(bert, *SST2, "--task", "sst2")
    message = refused(bert, *SST2, "--set", "finetune.from_mnli=true")
    assert "--task mnli" in message
    assert "finetune.learning_rates" in refused(bert, *SST2, "--set", "finetune.learning_rates=[]")
    assert "qqp needs a folder" in refused(bert, "--task", "qqp")


def test_models(refused: Any, bert: Path, finished_run: Path, tmp_path: Path) -> None:
    assert "no folder" in refused(tmp_path / "nothing", *SST2)
    assert "holds no config.yaml" in refused(f"{bert}@1", *SST2)
    assert "²" in refused(f"{finished_run}@²", *SST2)
    assert "must be at most 16" in refused(bert, *SST2, "--set", "finetune.max_length=17")


@pytest.mark.parametrize("token", ["pad_token", "cls_token"])
def test_a_tokenizer_that_lacks_a_token(
    token: str, refused: Any, bert: Path, tmp_path: Path
) -> None:
    shutil.copytree(bert, tmp_path / "bert")
    file = tmp_path / "bert" / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(file.read_text()).items() if k != token}
    file.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}))
    task = "sst2" if token == "pad_token" else "squad2"
    message = refused(tmp_path / "bert", "--task", task, "--set", "finetune.max_length=16")
    assert token in message


def test_a_token_without_an_embedding(refused: Any, bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shutil.copytree(bert, tmp_path / "bert")
    tokenizer: Any = AutoTokenizer.from_pretrained(str(bert))
    tokenizer.add_special_tokens({"pad_token": "[ANOTHER]"})
    tokenizer.save_pretrained(str(tmp_path / "bert"))
    assert "'[ANOTHER]' the id" in refused(tmp_path / "bert", *SST2)


def test_windows_that_have_no_room(refused: Any, finished_run: Path, tmp_path: Path) -> None:
    wide = save_bert(tmp_path / "wide", finished_run / "export", positions=128)
    message = refused(wide, "--task", "squad2", "--set", "finetune.stride=100")
    assert "finetune.stride" in message and "stride=100" in message


def test_teachers(refused: Any, bert: Path, tmp_path: Path) -> None:
    def taught_by(teacher: object, *tasks: str) -> str:
        return str(refused(bert, *tasks, "--set", f"finetune.teacher.model={teacher}"))

    config = BertConfig.from_pretrained(bert)
    config.num_labels = 3
    save_bert_teacher(tmp_path / "three", bert, config)
    assert "must have 2 outputs" in taught_by(tmp_path / "three", *SST2)
    assert "make a call for each" in taught_by(tmp_path / "three", *SST2, "--task", "rte")
    assert "asks for spans" in taught_by(tmp_path / "three", "--task", "squad2")
    assert "fine-tune the model for this use first" in taught_by(bert, *SST2)
    assert "no folder" in taught_by(tmp_path / "nobody", *SST2)


def save_bert_teacher(folder: Path, bert: Path, config: BertConfig) -> None:
    shutil.copytree(bert, folder)
    BertForSequenceClassification(config).save_pretrained(folder)


def test_a_teachers_labels_are_taken_by_name(bert: Path, tmp_path: Path) -> None:
    from evaluators.downstream.glue import Example

    config = BertConfig.from_pretrained(bert)
    config.id2label = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
    save_bert_teacher(tmp_path / "teacher", bert, config)
    task = task_named("mnli")
    teacher, tokenizer, order = load_teacher(str(tmp_path / "teacher"), task)
    assert order == (2, 1, 0)
    pair = Example("the dog sleeps", "a cat", 0, 0)
    (taught,) = teacher_logits(str(tmp_path / "teacher"), TaskData(task, [pair], {}, {}))
    inputs = tokenizer(pair.text_a, pair.text_b, return_tensors="pt")
    assert taught[::-1] == pytest.approx(teacher(**inputs).logits[0].tolist(), abs=1e-5)


def test_folders(refused: Any, bert: Path, tmp_path: Path) -> None:
    rows = tmp_path / "broken" / "rows" / "finetune-0001-000000.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text('{"name": "x"\n')
    assert "damaged" in refused(bert, *SST2, out=tmp_path / "broken")
    rows.write_text('{"name": "x", "error": null}\n')
    assert "has no epochs, headline" in refused(bert, *SST2, out=tmp_path / "broken")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert "thesis.tex" in refused(bert, *SST2, out=tmp_path / "thesis")
    (tmp_path / "thesis" / "config.yaml").write_text("space: {colour: blue}")
    assert "config.yaml" in refused(bert, *SST2, out=tmp_path / "thesis")
    assert "must be a folder" in refused(bert, *SST2, out=tmp_path / "thesis" / "thesis.tex")


def test_robertas_positions_begin_behind_the_padding() -> None:
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = RobertaConfig(**sizes, intermediate_size=8, max_position_embeddings=18, pad_token_id=1)
    assert positions_of(RobertaModel(config)) == 16
    config.pad_token_id = 4
    assert positions_of(RobertaModel(config)) == 13
    with pytest.raises(InvalidInput, match="at most 13"):
        from evaluators.downstream.finetuning import check_length

        check_length(14, RobertaModel(config))
