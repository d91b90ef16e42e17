"""The rows that the studies of the found model leave."""

import json

import pandas as pd

from benchmarks import found_study
from orchestrator.store import RunStore


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
