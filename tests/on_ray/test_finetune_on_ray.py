"""`magic-nas finetune` on a real Ray cluster gives the rows of its in-process twin."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.finetuning.driver import finetune
from orchestrator.finetuning.summary import ROWS
from orchestrator.store import RunStore
from tests.orchestrator.tiny_glue import BRIEF, save_bert, write_sst2

pytestmark = pytest.mark.ray


def test_the_rows_are_those_of_one_process(
    cluster_address: str, trained_run: Path, tmp_path: Path
) -> None:
    bert = save_bert(tmp_path / "bert", trained_run / "data" / "tokenizer", positions=16)
    data = write_sst2(tmp_path / "glue", counts={"train": 32, "dev": 40, "test": 4})
    both = BRIEF.model_copy(update={"selection_seeds": 2})  # two trials at once, once
    rows: dict[str, list[dict[str, Any]]] = {}
    for where, options in (("ray", {"address": cluster_address}), ("here", {"local": True})):
        out = tmp_path / where
        finetune(str(bert), ["sst2"], data=str(data), out=out, settings=both, **options)
        rows[where] = sorted(RunStore(out).rows(ROWS), key=lambda row: str(row["name"]))
        assert {path.name for path in out.iterdir()} == {
            *("rows", "models", "finetuned", "glue_test", "finetune.json")
        }
    assert len(rows["ray"]) == 2
    for there, here in zip(rows["ray"], rows["here"], strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], abs=1e-5)
        varying = ("wall_s", "train_loss")
        assert {k: v for k, v in there.items() if k not in varying} == {
            k: v for k, v in here.items() if k not in varying
        }
    assert (tmp_path / "ray" / "finetune.json").read_text() == (
        tmp_path / "here" / "finetune.json"
    ).read_text()
