"""Fine-tunings in a run's folder: its report, the cards of its export and of the models kept."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import AutoConfig

from orchestrator.config import parse, read_yaml
from orchestrator.finetuning.digest import digest_of
from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.summary import ROWS
from orchestrator.handover import export_best, refresh_card
from orchestrator.report import write_report
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.manifest import check_manifest
from tests.orchestrator.tiny_glue import BRIEF, save_bert, write_sst2


@pytest.fixture(scope="module")
def tuned_run(
    finished_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run whose export and a BERT were fine-tuned into its own folder, and the summary."""
    work = tmp_path_factory.mktemp("in_a_run")
    out, data = work / "run", write_sst2(work / "glue")
    shutil.copytree(finished_run, out)
    (out / "export" / "model.onnx").write_bytes(b"made by another command")
    bert = save_bert(work / "bert", out / "export", positions=12)
    finetune(str(out), ["sst2"], data=str(data), settings=BRIEF, local=True)
    summary = finetune(
        str(bert),
        ["sst2"],
        data=str(data),
        out=out,
        settings=BRIEF.model_copy(update={"max_length": 12, "seeds": 3}),
        local=True,
    )
    return out, summary


def test_the_report_has_every_model(tuned_run: tuple[Path, Any]) -> None:
    out, summary = tuned_run
    for text in ((out / "report.html").read_text(), _written_again(out)):
        section = text.partition("<h2>Fine-tuned</h2>")[2].partition("</section>")[0]
        for result in summary["results"]:
            assert f"{100 * result['headline']:.1f}" in section
            assert result["model"] in section
        assert section.count("<tr><td") == 4  # two in the overview, two with their recipes
        assert "±" in section and "batch 16, 12 tokens" in section


def test_the_run_s_own_settings_count_and_the_length_is_the_model_s(
    finished_run: Path, tmp_path: Path, command: Any
) -> None:
    out, data = tmp_path / "run", write_sst2(tmp_path / "glue")
    shutil.copytree(finished_run, out)
    own = {"learning_rates": [1e-2], "epochs": [10.0], "seeds": 1, "max_steps": 2}
    config = parse({**read_yaml((out / "config.yaml").read_bytes(), ""), "finetune": own})
    (out / "config.yaml").write_text(config.to_yaml())
    done = command("finetune", out, "--task", "sst2", "--data", data, "--local")
    assert done.code == 0, done.err
    (row,) = RunStore(out).rows(ROWS)
    assert (row["learning_rate"], row["max_steps"], row["max_length"]) == (1e-2, 2, 16)
    assert str(out / "finetune.json") in done.out


def _written_again(out: Path) -> str:
    write_report(RunStore(out))
    return (out / "report.html").read_text()


def test_the_card_of_the_export_has_its_own_fine_tunings(tuned_run: tuple[Path, Any]) -> None:
    out, summary = tuned_run
    own, other = summary["results"]
    assert own["model_digest"] == digest_of(out / "export")
    card = (out / "export" / "README.md").read_text()
    section = card.partition("## Fine-tuned")[2].partition("\n## ")[0]
    assert f"| sst2 | {100 * own['headline']:.1f} |" in section
    assert section.count("| sst2 |") == 1 and other["model"] not in card
    check_manifest(out / "export")
    assert (out / "export" / "model.onnx").read_bytes() == b"made by another command"
    assert "model.onnx" not in (out / "export" / "manifest.json").read_text()


def test_exporting_again_keeps_them(tuned_run: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(tuned_run[0], tmp_path / "run")
    card = (tmp_path / "run" / "export" / "README.md").read_text()
    run = Run.open(tmp_path / "run")
    export_best(run)
    assert (tmp_path / "run" / "export" / "README.md").read_text() == card
    check_manifest(tmp_path / "run" / "export")
    shutil.rmtree(tmp_path / "run" / "rows")
    refresh_card(run)
    assert "Fine-tuned" not in (tmp_path / "run" / "export" / "README.md").read_text()
    check_manifest(tmp_path / "run" / "export")


def test_a_kept_model_says_what_it_is(tuned_run: tuple[Path, Any]) -> None:
    out, summary = tuned_run
    rows = {row["name"]: row for row in RunStore(out).rows(ROWS)}
    folders = list((out / "finetuned" / "sst2").iterdir())
    assert len(folders) == 2
    for folder in folders:
        card = ModelCard.load(folder / "README.md")
        (found,) = card.data.eval_results
        assert (found.dataset_type, found.dataset_config) == ("sst2", None)
        assert found.metric_type == "accuracy"
        assert found.dataset_name == "sst2, 40 examples of local files"
        assert found.metric_value == round(rows[folder.name]["scores"]["accuracy"], 4)
        assert f"seed {rows[folder.name]['seed']}" in card.text
        check_manifest(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        assert config.id2label == {0: "negative", 1: "positive"}


def test_submissions_of_two_models_lie_apart(tuned_run: tuple[Path, Any]) -> None:
    out, summary = tuned_run
    digests = {result["model_digest"] for result in summary["results"]}
    folders = {path.parent.name for path in out.glob("glue_test/*/SST-2.tsv")}
    assert {name.partition("-")[0] for name in folders} == digests


def test_a_damaged_export_is_left_alone(
    tuned_run: tuple[Path, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tuned_run[0], tmp_path / "run")
    (tmp_path / "run" / "export" / "config.json").write_text("{}")
    refresh_card(Run.open(tmp_path / "run"))
    assert "does not get the fine-tunings" in caplog.text


def test_out_is_needed_for_a_model_that_is_no_runs(command: Any, tmp_path: Path) -> None:
    done = command("finetune", tmp_path, "--task", "sst2", "--data", tmp_path, "--local")
    assert done.code == 2 and "--out" in done.err
