"""The found model: what is trained, what it is called, and the export that is kept of it."""

import json

import pytest

from benchmarks import found_model
from benchmarks.downstream import architecture_config, found_config
from benchmarks.record import RESULTS
from orchestrator.finetuning.digest import digest_of
from orchestrator.hugging_face_models import load_pretrained
from supernet.manifest import MANIFEST
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


def test_it_is_pre_trained_by_the_recipe_and_goes_by_its_path(record, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(found_model, "run", lambda config, **how: asked.append((config, how)))
    name = found_model.pretrain(tmp_path, quick=True)
    assert name == f"{tmp_path}@{record['architecture']}"
    assert asked == [
        (
            architecture_config(record["architecture"], quick=True),
            {"out": tmp_path, "only": ("data", "train")},
        )
    ]


def test_the_kept_model_is_the_one_of_its_record_and_loads(record, tmp_path):
    folder, known = found_model.found_model(tmp_path / "kept")
    assert digest_of(tmp_path / "kept") == known["model_digest"]
    assert known["architecture"] == record["architecture"]
    assert known["quick"] is False
    model, tokenizer = load_pretrained(folder, "sequence_classification", num_labels=2)
    assert "-".join(model.config.layers) == record["architecture"]
    assert len(tokenizer) == model.config.vocab_size


def test_packing_leaves_out_what_names_a_folder_and_keeps_the_rest(monkeypatch, tmp_path):
    made = tmp_path / "made"
    made.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", MANIFEST):
        (made / name).write_text(f"of {name}")
    monkeypatch.setattr(found_model, "RESULTS", tmp_path)
    (tmp_path / "found_model.json").write_text('{"results": {"loss_nats": 3.5}}')
    found_model.pack(made, tmp_path / "found_model.zip")
    folder, known = found_model.found_model(tmp_path / "unpacked")
    assert sorted(file.name for file in (tmp_path / "unpacked").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert digest_of(tmp_path / "unpacked") == digest_of(made)
    assert folder == str(tmp_path / "unpacked")
    assert known == {"loss_nats": 3.5}
