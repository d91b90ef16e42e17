"""The found model of the studies: what is trained, and what it is called."""

import json

import pandas as pd
import pytest

from benchmarks import found_study
from benchmarks.downstream import architecture_config, found_config
from benchmarks.record import RESULTS
from orchestrator.store import RunStore
from supernet.space import Architecture
from tests.benchmarks.costs import cost_model


@pytest.fixture
def record(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    return json.loads((RESULTS / "downstream.json").read_text())["results"]


def test_the_architecture_alone_is_the_one_in_the_searched_space(record):
    architecture = record["architecture"]
    alone, searched = (
        cost_model(config).cost(Architecture.parse(architecture))
        for config in (
            architecture_config(architecture, quick=False),
            found_config(quick=False),
        )
    )
    assert alone == searched
    assert alone.num_params == pytest.approx(record["num_params"]["found"], rel=0.02)


def test_what_is_pre_trained_goes_by_its_path_and_has_its_loss(record, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(found_study, "run", lambda config, **how: asked.append((config, how)))
    monkeypatch.setattr(found_study, "learnt_alone", lambda folder: {"loss_nats": 3.0})
    name, learnt = found_study.pretrain(tmp_path / "found", quick=True)
    assert name == f"{tmp_path / 'found'}@{record['architecture']}"
    assert learnt == {"loss_nats": 3.0}
    ((config, how),) = asked
    assert config == architecture_config(record["architecture"], quick=True)
    assert how == {"out": tmp_path / "found", "only": ("data", "train")}


@pytest.mark.parametrize(("given", "place"), [([], "study/pretrained"), (["shared"], "shared")])
def test_studies_may_share_a_pre_trained_model(monkeypatch, tmp_path, given, place):
    monkeypatch.chdir(tmp_path)
    more = ["--pretrained", *given] if given else []
    monkeypatch.setattr("sys.argv", ["study", "--work", "study", *more])
    options = found_study.options_of("A study.", "runs/study")
    assert (options.work, options.pretrained) == (tmp_path / "study", tmp_path / place)


def test_rows_are_written_with_their_stage_and_without_a_path(tmp_path):
    row = {
        **{"name": "a", "model": str(tmp_path), "model_digest": "d", "task": "squad", "seed": 0},
        **{"pretrained": True, "learning_rate": 5e-4, "epochs": 1.0, "start": None},
        **{"teacher": None, "error": None, "headline": 0.5, "scores": {"f1": 0.5}},
    }
    diverged = {**row, "name": "b", "headline": None, "scores": None, "error": "not finite"}
    for stage, given in (("clozes", row), ("at_once", diverged)):
        RunStore(tmp_path / stage).row_writer("finetune").write([given])
    file = tmp_path / "rows.parquet"
    found_study.write_rows(file, clozes=tmp_path / "clozes", at_once=tmp_path / "at_once")
    frame = pd.read_parquet(file)
    one, other = frame.to_dict("records")
    assert (one["stage"], one["name"], json.loads(one["scores"])) == ("clozes", "a", {"f1": 0.5})
    assert (other["stage"], other["error"], other["scores"]) == ("at_once", "not finite", "null")
    assert str(tmp_path) not in frame.to_csv()
