"""What several calls in one output folder come to: choices, test splits, submissions, the hub."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from orchestrator.config import FinetuneTeacherSettings
from orchestrator.finetuning import jobs
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.sources import model_source
from orchestrator.finetuning.summary import ROWS, read_rows
from orchestrator.finetuning.table import NOTHING, overview
from orchestrator.store import RunStore
from supernet.errors import MagicNasError
from tests.orchestrator.tiny_glue import BRIEF, save_bert, write_squad, write_sst2

SMALL = {"train": 32, "dev": 8}


@pytest.fixture(scope="module")
def bert(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 128 positions."""
    return save_bert(tmp_path_factory.mktemp("bert"), finished_run / "export", positions=128)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A very small SST-2 without a test split, and MNLI as three small files."""
    folder = write_sst2(tmp_path / "data", counts=SMALL)
    (folder / "MNLI").mkdir()
    rows = "\n".join(["neutral\ta\tb", "entailment\ta\ta", "contradiction\tb\ta"] * 4)
    for name in ("snli", "mnli_matched", "mnli_mismatched"):
        (folder / "MNLI" / f"{name}.tsv").write_text(rows + "\n")
    (folder / "RTE").mkdir()
    rows = "\n".join(f"{i}\ta\tb\tentailment" for i in range(6))
    for split in ("train", "dev"):
        text = f"index\tsentence1\tsentence2\tlabel\n{rows}\n"
        (folder / "RTE" / f"{split}.tsv").write_text(text)
    return folder


def brief(
    bert: object, data: Path, out: Path, *, tasks: tuple[str, ...] = ("sst2",), **changes: Any
) -> dict[str, Any]:
    settings = BRIEF.model_copy(update=changes)
    return finetune(str(bert), tasks, data=str(data), out=out, settings=settings, local=True)


def test_the_last_call_chooses_table_model_and_submission(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    write_sst2(data, counts={**SMALL, "test": 4})
    out = tmp_path / "out"
    (before,) = brief(bert, data, out, seeds=3)["results"]
    (result,) = brief(bert, data, out, seeds=2, learning_rates=(1e-3,))["results"]
    assert (before["learning_rate"], before["seeds"]) == (1e-2, 3)
    assert (result["learning_rate"], result["seeds"], result["tried"]) == (1e-3, 2, 2)
    kept = {path.name for path in (out / "finetuned" / "sst2").iterdir()}
    assert len(kept & set(result["names"])) == len(kept & set(before["names"])) == 1
    (chosen,) = kept & set(result["names"])
    predicted = json.loads((out / "finetuned/sst2" / chosen / "test_predictions.json").read_text())
    (folder,) = (out / "glue_test").iterdir()
    lines = (folder / "SST-2.tsv").read_text().splitlines()[1:]
    assert [int(line.split("\t")[1]) for line in lines] == predicted["predictions"]["test"]
    assert json.loads((folder / "settings.json").read_text())["model"] == str(bert)
    (again,) = brief(bert, data, out, seeds=3)["results"]
    assert again == {**before, "tried": 2}


def test_other_recipes_have_submissions_of_their_own(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    write_sst2(data, counts={**SMALL, "test": 4})
    for steps in (2, 3):
        brief(bert, data, tmp_path / "out", seeds=1, max_steps=steps)
    assert len(list((tmp_path / "out" / "glue_test").glob("*/SST-2.tsv"))) == 2


def test_a_test_split_that_comes_later_or_changes_is_predicted(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    brief(bert, data, out)
    assert not (out / "glue_test").exists()
    for count in (4, 6):
        write_sst2(data, counts={**SMALL, "test": count})
        brief(bert, data, out)
        (file,) = out.glob("glue_test/*/SST-2.tsv")
        assert len(file.read_text().splitlines()) == 1 + count
    assert len(RunStore(out).rows(ROWS)) == 2


def test_without_a_model_from_mnli_the_other_tasks_go_on(
    bert: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = jobs.run_job

    def diverging(store: RunStore, job: Any, *arguments: Any, **options: Any) -> Any:
        row = real(store, job, *arguments, **options)
        return {**row, "error": "not finite"} if job.task == "mnli" else row

    monkeypatch.setattr(jobs, "run_job", diverging)
    out, tasks = tmp_path / "out", ("mnli", "rte", "sst2")
    with pytest.raises(MagicNasError, match="mnli diverged .*; rte had no model to start from"):
        brief(bert, data, out, tasks=tasks, from_mnli=True, seeds=1)
    results = json.loads((out / "finetune.json").read_text())["results"]
    assert {result["task"]: result["diverged"] for result in results} == {"mnli": 1, "sst2": 0}


def test_what_stands_in_for_a_tasks_own_data_is_said(
    bert: Path, data: Path, tmp_path: Path
) -> None:
    summary = brief(bert, data, tmp_path / "out", tasks=("mnli",), seeds=1)
    (result,) = summary["results"]
    assert result["stand_in"] == "train: SNLI"
    assert result["trivial"] == pytest.approx(1 / 3)
    assert overview(summary)[0].glue == NOTHING
    (kept,) = (tmp_path / "out" / "finetuned" / "mnli").iterdir()
    assert "train: SNLI" in (kept / "README.md").read_text()


def test_a_tokenizer_that_pads_on_the_left_finds_answers_all_the_same(
    bert: Path, tmp_path: Path
) -> None:
    left = shutil.copytree(bert, tmp_path / "left")
    config = json.loads((left / "tokenizer_config.json").read_text())
    (left / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    assert AutoTokenizer.from_pretrained(str(left)).padding_side == "left"
    squad = write_squad(tmp_path / "squad")
    found = [
        brief(model, squad, tmp_path / "out", tasks=("squad2",), seeds=1, max_length=96)
        for model in (bert, left)
    ]
    right, other = read_rows(RunStore(tmp_path / "out"))
    assert len(found[1]["results"]) == 2 and right["model_digest"] != other["model_digest"]
    assert (right["train_loss"], right["scores"]) == (other["train_loss"], other["scores"])


@pytest.fixture
def hub(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the hub that has two versions of a model; gives the file that says which."""
    repository = tmp_path / "cache" / "models--team--model"
    for commit in "ab":
        snapshot = shutil.copytree(bert, repository / "snapshots" / (commit * 40))
        (snapshot / "tf_model.h5").write_text("of no use")
    config = json.loads((snapshot / "config.json").read_text())
    (snapshot / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return repository / "refs" / "main"


def test_a_model_of_the_hub_is_known_by_its_content(
    hub: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    source = model_source(RunStore(out), "team/model")
    assert source.from_hub and source.digest == model_source(RunStore(out), str(bert)).digest
    assert "tf_model.h5" not in os.listdir(out / source.place)
    brief("team/model", data, out)
    hub.write_text("b" * 40)
    summary = brief("team/model", data, out)
    assert [result["model"] for result in summary["results"]] == ["team/model"] * 2
    assert summary["results"][0]["model_digest"] == source.digest
    (kept, *_) = (out / "finetuned" / "sst2").iterdir()
    assert "base_model: team/model" in (kept / "README.md").read_text()


def test_a_teacher_of_the_hub_is_known_by_its_content(
    hub: Path, bert: Path, data: Path, tmp_path: Path
) -> None:
    tuned = tmp_path / "tuned"
    brief(bert, data, tuned, seeds=1)
    (model,) = (tuned / "finetuned" / "sst2").iterdir()
    for commit in "ab":
        snapshot = hub.parent.parent / "snapshots" / (commit * 40)
        shutil.rmtree(snapshot)
        shutil.copytree(model, snapshot)
    (snapshot / "added.txt").write_text(commit)
    teacher = FinetuneTeacherSettings(model="team/model")
    for commit in "ab":
        hub.write_text(commit * 40)
        summary = brief(bert, data, tmp_path / "out", seeds=1, teacher=teacher)
    first, second = (result["teacher"].split() for result in summary["results"])
    assert first[0] == second[0] == "team/model" and first[1] != second[1]
