"""Fine-tunings that are stopped, repeated with other settings, or kept on an object store."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.downstream.finetuning import Recipe
from evaluators.downstream.reading import read_task
from evaluators.downstream.squad_metric import score_squad
from evaluators.downstream.tasks import task_named
from orchestrator.config import FinetuneSettings
from orchestrator.finetuning import jobs
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.study import span_settings
from orchestrator.finetuning.summary import ROWS, read_rows, summarise
from orchestrator.finetuning.table import GLUE, NOTHING, format_summary, lines, overview
from orchestrator.finetuning.trial import Job, ModelSource
from orchestrator.hugging_face_models import load_pretrained
from orchestrator.node_copy import folder_here
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, MagicNasError
from supernet.manifest import check_manifest
from tests.orchestrator.tiny_glue import BRIEF, save_bert, write_squad, write_sst2

SMALL = {"train": 32, "dev": 8, "test": 4}


@pytest.fixture(scope="module")
def bert(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 128 positions."""
    return save_bert(tmp_path_factory.mktemp("bert"), finished_run / "export", positions=128)


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small SST-2."""
    return write_sst2(tmp_path_factory.mktemp("glue"), counts=SMALL)


def brief(bert: Path, data: Path, out: Path | str, **changes: Any) -> dict[str, Any]:
    settings = BRIEF.model_copy(update=changes)
    return finetune(str(bert), ["sst2"], data=str(data), out=out, settings=settings, local=True)


def test_a_call_that_was_killed_goes_on(
    bert: Path, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    real = jobs.run_job

    def killed_at_the_third(store: RunStore, job: Any, *arguments: Any, **options: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        row = real(store, job, *arguments, **options)
        done.append(job.name)
        return row

    grid = {"learning_rates": (1e-2, 1e-3)}
    monkeypatch.setattr(jobs, "run_job", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        brief(bert, sst2, tmp_path / "killed", **grid)
    folders = list((tmp_path / "killed" / "finetuned" / "sst2").iterdir())
    half = folders[0].with_name(f".{folders[0].name}.partial")
    half.mkdir()  # as a kill in the middle of keeping a model leaves it
    (tmp_path / "killed" / "ray").mkdir()  # and one of Tune

    def counted(store: RunStore, job: Any, *arguments: Any, **options: Any) -> Any:
        assert job.name not in done
        done.append(job.name)
        return real(store, job, *arguments, **options)

    monkeypatch.setattr(jobs, "run_job", counted)
    went_on = brief(bert, sst2, tmp_path / "killed", **grid)
    monkeypatch.setattr(jobs, "run_job", real)
    assert went_on == brief(bert, sst2, tmp_path / "whole", **grid)
    assert len(done) == len(set(done)) == 3
    for out in (tmp_path / "killed", tmp_path / "whole"):
        (kept,) = RunStore(out).names("finetuned/sst2")
        check_manifest(out / "finetuned" / "sst2" / kept)


def test_other_settings_are_other_lines(bert: Path, sst2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    brief(bert, sst2, out)
    brief(bert, sst2, out, batch_size=8, seeds=1)
    other = write_sst2(tmp_path / "other", counts={**SMALL, "dev": 6})
    summary = brief(bert, other, out, seeds=1)
    assert [result["seeds"] for result in summary["results"]] == [2, 1, 1]
    assert [result["batch_size"] for result in summary["results"]] == [16, 8, 16]
    assert "batch 8" in format_summary(summary)
    (model,) = overview(summary)
    assert model.medians == (lines(summary)[0].median,)
    assert model.glue == NOTHING


def test_a_kept_model_that_was_lost_is_made_again(bert: Path, sst2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    brief(bert, sst2, out, seeds=1)
    (kept,) = (out / "finetuned" / "sst2").iterdir()
    before = (kept / "model.safetensors").read_bytes()
    shutil.rmtree(kept)
    brief(bert, sst2, out, seeds=1)
    assert (kept / "model.safetensors").read_bytes() == before
    assert len(RunStore(out).rows(ROWS)) == 1


def test_one_task_that_diverges_does_not_lose_the_others(
    bert: Path, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sst2 / "SST-2", tmp_path / "data" / "SST-2")
    shutil.copytree(sst2 / "SST-2", tmp_path / "data" / "CoLA")
    for split in ("train", "dev"):
        rows = (sst2 / "SST-2" / f"{split}.tsv").read_text().splitlines()[1:]
        columns = (line.split("\t") for line in rows)
        text = "\n".join(f"x\t{label}\t\t{sentence}" for sentence, label in columns)
        (tmp_path / "data" / "CoLA" / f"{split}.tsv").write_text(text + "\n")
    (tmp_path / "data" / "CoLA" / "test.tsv").unlink()
    real = jobs.run_job

    def diverging(store: RunStore, job: Any, *arguments: Any, **options: Any) -> Any:
        row = real(store, job, *arguments, **options)
        return {**row, "error": "not finite"} if job.task == "cola" else row

    monkeypatch.setattr(jobs, "run_job", diverging)
    out = tmp_path / "out"
    with pytest.raises(MagicNasError, match="cola diverged with every seed"):
        finetune(
            str(bert),
            ["cola", "sst2"],
            data=str(tmp_path / "data"),
            out=out,
            settings=BRIEF,
            local=True,
        )
    results = json.loads((out / "finetune.json").read_text())["results"]
    assert {result["task"]: result["diverged"] for result in results} == {"cola": 2, "sst2": 0}
    assert len(list((out / "finetuned" / "sst2").iterdir())) == 1


def test_the_folder_may_be_on_an_object_store(
    s3: str, bert: Path, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGIC_NAS_CACHE", str(tmp_path / "cache"))
    out = s3.format("finetuned")
    there = brief(bert, sst2, out)
    here = brief(bert, sst2, tmp_path / "here")
    assert [r["headline"] for r in there["results"]] == [r["headline"] for r in here["results"]]
    store = RunStore(out)
    (kept,) = store.names("finetuned/sst2")
    model, _ = load_pretrained(
        str(folder_here(store, f"finetuned/sst2/{kept}")), "sequence_classification", new_head=False
    )
    twin, _ = load_pretrained(
        str(tmp_path / "here" / "finetuned" / "sst2" / kept), "sequence_classification"
    )
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, twin.state_dict()[name])
    (folder,) = store.names("glue_test")
    assert store.read_bytes(f"glue_test/{folder}/SST-2.tsv").startswith(b"index\tprediction\n0\t")
    assert brief(bert, sst2, out) == there
    assert not list((tmp_path / "cache").glob("work-*"))


def test_a_kept_model_for_squad_has_its_answers(bert: Path, tmp_path: Path) -> None:
    data = write_squad(tmp_path / "data")
    settings = FinetuneSettings(learning_rates=(1e-3,), seeds=1, max_length=96, max_steps=2)

    def answer(**changes: Any) -> dict[str, Any]:
        return finetune(
            str(bert),
            ["squad2"],
            data=str(data),
            out=tmp_path / "out",
            settings=settings.model_copy(update=changes),
            local=True,
        )

    (result,) = answer()["results"]
    (kept,) = (tmp_path / "out" / "finetuned" / "squad2").iterdir()
    task = task_named("squad2")
    questions = read_task(task, str(data)).dev["dev"]
    said = json.loads((kept / "predictions.json").read_text())
    assert score_squad(task, questions, said).items() <= result["scores"].items()
    n_best = json.loads((kept / "nbest_predictions.json").read_text())
    odds = json.loads((kept / "null_odds.json").read_text())
    for name, text in said.items():
        spans = [entry for entry in n_best[name] if entry["text"]]
        assert sum(entry["probability"] for entry in n_best[name]) == pytest.approx(1)
        best = "" if odds[name] > result["scores"]["null_odds"] else spans[0]["text"]
        assert text == best
        (null,) = (entry for entry in n_best[name] if not entry["text"])
        difference = _logit(null) - _logit(spans[0])
        assert difference == pytest.approx(odds[name])
    narrow = answer(stride=4, n_best=2)["results"]
    assert [result["stride"] for result in narrow] == [24, 4]


def test_short_questions_leave_a_model_of_few_positions_room_for_contexts(
    finished_run: Path, tmp_path: Path
) -> None:
    narrow = save_bert(tmp_path / "narrow", finished_run / "export", positions=24)
    data, out = write_squad(tmp_path / "data"), tmp_path / "out"

    def answer(most: int) -> list[dict[str, Any]]:
        changes = {"max_length": 24, "stride": 2, "max_question_tokens": most}
        settings = BRIEF.model_copy(update=changes)
        found: list[dict[str, Any]] = finetune(
            str(narrow), ["squad2"], data=str(data), out=out, settings=settings, local=True
        )["results"]
        return found

    with pytest.raises(InvalidInput, match=r"24 - 64 - 3 .* finetune\.max_question_tokens\)"):
        answer(64)
    assert [result["max_question_tokens"] for result in answer(18)] == [18]
    assert [result["max_question_tokens"] for result in answer(2)] == [18, 2]
    windows = {row["max_question_tokens"]: row["truncated"] for row in read_rows(RunStore(out))}
    assert windows[2] == 0 < windows[18]


def test_rows_from_before_questions_had_a_length_keep_their_names() -> None:
    recipe = Recipe(learning_rate=1e-4, epochs=2.0, seed=0)
    spans = span_settings(FinetuneSettings(), max_length=128)
    job = Job(ModelSource("m", "p", "d"), "squad", "data", recipe, True, 128, False, spans=spans)
    assert job.name == "f744ec0b79f77996"
    assert replace(job, spans=replace(spans, max_question_tokens=32)).name != job.name


def _logit(entry: dict[str, Any]) -> float:
    return float(entry["start_logit"] + entry["end_logit"])


def test_a_row_that_came_twice_counts_once_and_the_mean_wants_all_tasks(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    rows = [
        {
            "name": f"{task}{seed}",
            "model": "m",
            "model_digest": "d",
            "task": task,
            "pretrained": True,
            "start": "finetuned/mnli/x" if task == "rte" else None,
            "batch_size": 32,
            "max_length": 128,
            "learning_rate": 1e-4,
            "epochs": 3.0,
            "num_params": 5,
            "seed": seed,
            "error": None,
            "headline": 0.5 + 0.01 * number,
            "scores": {"accuracy": 0.5},
        }
        for number, task in enumerate(GLUE)
        for seed in (0, 1)
    ]
    store.row_writer(ROWS).write(rows)
    store.row_writer(ROWS).write(rows[:1])
    summary = summarise(read_rows(store))
    assert all(result["seeds"] == 2 for result in summary["results"])
    plain, from_mnli = overview(summary)
    assert plain.glue == NOTHING and from_mnli.model == "m, from MNLI"
    assert from_mnli.glue == "53.5"  # the mean of 50 to 57
    assert "GLUE 53.5" in format_summary(summary)
