"""Fine-tuning through the command line and Python: rows, choice of recipe, models, bad input."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPConfig

from evaluators.downstream.finetuning import Recipe, predict
from evaluators.downstream.finetuning import finetune as train_and_score
from evaluators.downstream.heads import SentenceHead, TaskData
from evaluators.downstream.reading import read_task
from evaluators.downstream.tasks import task_named
from orchestrator.config import FinetuneTeacherSettings
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.sources import model_source
from orchestrator.finetuning.summary import ROWS, interval, summarise
from orchestrator.hugging_face_models import load_pretrained
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict, TrainingDiverged
from tests.orchestrator.tiny_glue import QUICK, save_bert, sentences, write_sst2


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SST-2 with a test split."""
    return write_sst2(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def tuned(
    finished_run: Path, glue: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """The export of a finished run, fine-tuned."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    summary = finetune(
        str(finished_run), ["sst2"], data=str(glue), out=out, settings=QUICK, local=True
    )
    return out, summary


def test_it_learns_and_takes_the_learning_rate_that_does(tuned: tuple[Path, Any]) -> None:
    (result,) = tuned[1]["results"]
    assert result["learning_rate"] == 1e-2
    assert result["tried"] == 2
    assert result["seeds"] == 2
    assert result["scores"]["accuracy"] == result["headline"] > 0.9
    rows = RunStore(tuned[0]).rows(ROWS)
    assert [(row["learning_rate"], row["seed"]) for row in rows] == [
        (1e-2, 0),
        (1e-6, 0),
        (1e-2, 1),
    ]
    assert rows[1]["headline"] < rows[0]["headline"]
    assert rows[0]["steps"] == 120


def test_a_second_call_trains_nothing_more(
    tuned: tuple[Path, Any], finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tuned[0], out)
    again = finetune(
        str(finished_run), ["sst2"], data=str(glue), out=out, settings=QUICK, local=True
    )
    assert again == tuned[1]
    assert len(RunStore(out).rows(ROWS)) == 3


def test_the_kept_model_is_the_one_that_was_scored(tuned: tuple[Path, Any], glue: Path) -> None:
    out, summary = tuned
    (folder,) = (out / "finetuned" / "sst2").iterdir()
    model, tokenizer = load_pretrained(str(folder), "sequence_classification", new_head=False)
    head = SentenceHead(read_task(task_named("sst2"), str(glue)), tokenizer, max_length=16)
    scores = head.scores(predict(model, head.dev_features, tokenizer))
    kept = [row for row in RunStore(out).rows(ROWS) if row["name"] == folder.name]
    assert scores == kept[0]["scores"]
    assert scores["accuracy"] == min(
        row["headline"] for row in RunStore(out).rows(ROWS) if row["learning_rate"] == 1e-2
    )


def test_predictions_of_the_test_split_are_in_glues_format(tuned: tuple[Path, Any]) -> None:
    (file,) = tuned[0].glob("glue_test/*/SST-2.tsv")
    lines = file.read_text().splitlines()
    assert lines[0] == "index\tprediction"
    wanted = [str(label) for _, label in sentences(10, 9)]
    right = sum(line.split("\t")[1] == label for line, label in zip(lines[1:], wanted, strict=True))
    assert right >= 9


@pytest.mark.parametrize("child", ["1", "best", "baseline"])
def test_a_child_of_a_run_begins_with_its_own_weights(
    child: str, finished_run: Path, tmp_path: Path
) -> None:
    store = RunStore(tmp_path / "out")
    source = model_source(store, f"{finished_run}@{child}")
    model, _ = load_pretrained(str(store.local_path(source.place)), "masked_lm", new_head=False)
    folder = "supernet" if child == "1" else f"retrained/{child}"
    from supernet.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(RunStore(finished_run), folder, optimizer=False)
    assert checkpoint is not None
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, checkpoint.weights[name.removeprefix("magic_nas.")])


def test_random_weights_are_another_study(
    tuned: tuple[Path, Any], finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tuned[0], out)
    scratch = QUICK.model_copy(update={"pretrained": False, "max_steps": 2, "seeds": 1})
    summary = finetune(
        str(finished_run), ["sst2"], data=str(glue), out=out, settings=scratch, local=True
    )
    assert [result["pretrained"] for result in summary["results"]] == [True, False]
    assert summary["results"][0] == tuned[1]["results"][0]


def test_pooling_is_another_study_and_kept_with_the_model(
    tuned: tuple[Path, Any], finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tuned[0], out)
    before = {path.name for path in (out / "finetuned" / "sst2").iterdir()}
    _forget_pooling(out)
    mean = QUICK.model_copy(
        update={"pooling": "mean", "max_steps": 2, "seeds": 1, "learning_rates": (1e-2,)}
    )
    run = {"data": str(glue), "out": out, "local": True}
    summary = finetune(str(finished_run), ["sst2"], settings=mean, **run)
    assert [result["pooling"] for result in summary["results"]] == ["cls", "mean"]
    assert summary["results"][0] == tuned[1]["results"][0]
    (kept,) = (out / "finetuned" / "sst2" / name for name in _names(out) - before)
    model, _ = load_pretrained(str(kept), "sequence_classification", new_head=False)
    assert model.config.classifier_pooling == model.classifier.pooling == "mean"
    assert len(RunStore(out).rows(ROWS)) == 4
    finetune(str(finished_run), ["sst2"], settings=QUICK, **run)
    assert len(RunStore(out).rows(ROWS)) == 4


def _names(out: Path) -> set[str]:
    return {path.name for path in (out / "finetuned" / "sst2").iterdir()}


def _forget_pooling(out: Path) -> None:
    """Rows as they were written before there was a choice."""
    for path in (out / "rows" / ROWS).glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(row.pop("pooling") == "cls" for row in rows)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_teacher_alone_makes_the_student_agree_with_it(
    tuned: tuple[Path, Any], finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    """All labels are turned round, and count nothing."""
    wrong = write_sst2(tmp_path / "glue", turned=True)
    (teacher,) = (tuned[0] / "finetuned" / "sst2").iterdir()
    taught = QUICK.model_copy(
        update={
            "learning_rates": (1e-2,),
            "seeds": 1,
            "teacher": FinetuneTeacherSettings(model=str(teacher), weight=1.0),
        }
    )
    summary = finetune(
        str(finished_run),
        ["sst2"],
        data=str(wrong),
        out=tmp_path / "o",
        settings=taught,
        local=True,
    )
    assert summary["results"][0]["headline"] < 0.1


def test_the_interval_is_students() -> None:
    low, high = interval([1.0, 2.0, 3.0]) or [0.0, 0.0]
    assert low == pytest.approx(2 - 4.302653 / 3**0.5)
    assert high == pytest.approx(2 + 4.302653 / 3**0.5)
    assert interval([1.0]) is None
    assert interval([1.0, 1.0, 1.0]) is None  # they say nothing of how far others would lie


def test_seeds_that_diverged_are_counted_and_left_out() -> None:
    row = dict.fromkeys(
        ("model", "model_digest", "task", "pretrained", "start", "teacher", "max_length"), "x"
    ) | {"learning_rate": 1e-3, "epochs": 1, "max_steps": None, "num_params": 5}
    rows = [
        {
            **row,
            "name": "0",
            "seed": 0,
            "headline": 0.5,
            "scores": {"accuracy": 0.5},
            "error": None,
        },
        {**row, "name": "1", "seed": 1, "error": "diverged"},
        {
            **row,
            "name": "2",
            "seed": 2,
            "headline": 0.7,
            "scores": {"accuracy": 0.7},
            "error": None,
        },
    ]
    (result,) = summarise(rows)["results"]
    assert (result["seeds"], result["diverged"]) == (3, 1)
    assert result["headline"] == result["mean"] == pytest.approx(0.6)


def test_a_loss_that_is_not_finite_is_seen(finished_run: Path, glue: Path, tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert", finished_run / "export", positions=16)
    model, tokenizer = load_pretrained(str(bert), "sequence_classification", num_labels=2)
    head = SentenceHead(read_task(task_named("sst2"), str(glue)), tokenizer, max_length=16)
    with torch.no_grad():
        model.get_parameter("classifier.bias").fill_(torch.nan)
    with pytest.raises(TrainingDiverged, match="the loss of a fine-tuning must be finite"):
        train_and_score(model, head, Recipe(1e-3, epochs=1.0, seed=0, max_steps=2))


@pytest.fixture
def refused(command: Any, tmp_path: Path) -> Callable[..., str]:
    """Runs a fine-tuning that must be refused; returns the message."""

    def run(model: object, *options: object) -> str:
        done = command("finetune", model, "--out", tmp_path / "out", "--local", *options)
        assert done.code == 2, done.err
        assert done.err.count("magic-nas: ") == 1
        assert "Traceback" not in done.err
        assert not list((tmp_path / "out").rglob("*.jsonl"))
        return str(done.err)

    return run


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["sentence\tlabel", "a dog\t1", "a cat"], ["train.tsv", "line 3"]),
        (["sentence\tlabel", "a dog\t1\t2"], ["train.tsv", "line 2"]),
        (["sentence\tlabel", "a dog\t7"], ["train.tsv", "line 2", "7"]),
        (["text\tlabel", "a dog\t1"], ["train.tsv", "sentence", "text"]),
        (["sentence\tlabel"], ["train.tsv"]),
    ],
)
def test_bad_files(
    lines: list[str], words: list[str], refused: Any, finished_run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "SST-2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    (folder / "dev.tsv").write_text("sentence\tlabel\na dog\t1\n")
    message = refused(finished_run, "--task", "sst2", "--data", folder.parent)
    assert all(word in message for word in words), message


def test_bad_names_and_settings(
    refused: Any, finished_run: Path, trained_run: Path, glue: Path, tmp_path: Path
) -> None:
    sst2 = ("--task", "sst2", "--data", glue)
    assert "sst2" in refused(finished_run, "--task", "sst", "--data", glue)
    assert "no folder" in refused(tmp_path / "nothing", *sst2)
    assert "no export" in refused(trained_run, *sst2)
    assert "leaderboard" in refused(f"{finished_run}@0", *sst2)
    assert "nowhere holds no config.yaml" in refused("nowhere@best", *sst2)
    assert "control_0" in refused(f"{finished_run}@nobody", *sst2)
    message = refused(finished_run, *sst2, "--set", "finetune.max_length=128")
    assert "finetune.max_length must be at most 16" in message
    assert "finetune.seeds" in refused(finished_run, *sst2, "--set", "finetune.seeds=0")


def test_a_model_without_the_head(refused: Any, glue: Path, tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"")
    message = refused(tmp_path / "clip", "--task", "rte", "--task", "sst2", "--data", glue)
    assert "RTE" in message or "clip" in message


def test_another_models_folder_is_left_alone(
    finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunConflict, match=r"thesis\.tex"):
        finetune(
            str(finished_run), ["sst2"], data=str(glue), out=tmp_path, settings=QUICK, local=True
        )


def test_any_model_of_transformers_runs_by_the_same_recipe(
    finished_run: Path, glue: Path, tmp_path: Path
) -> None:
    save_bert(tmp_path / "bert", finished_run / "export", positions=16)
    one = QUICK.model_copy(update={"learning_rates": (1e-2,), "seeds": 1})
    with pytest.raises(InvalidInput, match="finetune.pooling=mean is for exports"):
        finetune(
            str(tmp_path / "bert"),
            ["sst2"],
            data=str(glue),
            out=tmp_path / "refused",
            settings=one.model_copy(update={"pooling": "mean"}),
            local=True,
        )
    summary = finetune(
        str(tmp_path / "bert"),
        ["sst2"],
        data=str(glue),
        out=tmp_path / "o",
        settings=one,
        local=True,
    )
    assert summary["results"][0]["headline"] > 0.9


def test_mnli_has_a_second_dev_part(finished_run: Path) -> None:
    from evaluators.downstream.glue import Example

    task = task_named("mnli")
    _, tokenizer = load_pretrained(str(finished_run / "export"), "features")
    pairs = [Example("the dog", "a cat", i % 3, i) for i in range(5)]
    head = SentenceHead(
        TaskData(task, pairs, {"dev": pairs[:3], "dev_mm": pairs[3:]}, {}), tokenizer, max_length=16
    )
    outputs = [torch.eye(3)[i] for i in (0, 1, 2, 0, 0)]
    assert head.scores(outputs) == {"accuracy": 1.0, "accuracy_mm": 0.5}
    assert json.dumps(head.train_features[0])
    with pytest.raises(InvalidInput, match="fine-tune the model for this use first"):
        from orchestrator.finetuning.teacher import teacher_logits

        teacher_logits(str(finished_run / "export"), TaskData(task, pairs, {}, {}))
