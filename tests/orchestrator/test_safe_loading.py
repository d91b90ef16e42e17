"""Files that were made to run code when they are read are refused, and their code does not run."""

import ast
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch

from orchestrator import load_config, load_leaderboard
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint, load_checkpoint
from supernet.errors import CheckpointDamaged, InvalidInput
from supernet.manifest import write_manifest

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestrator", "evaluators", "supernet", "benchmarks", "examples")
NEWEST = "supernet/step-00000060"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a payload would make; it must not be there at the end."""
    path = tmp_path / "was-run"
    yield path
    assert not path.exists()


def test_the_payload_does_run_where_it_is_unpickled(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def plain_pickle(payload: Payload, path: Path) -> None:
    path.write_bytes(pickle.dumps({"stem.weight": payload}))


def torch_file(payload: Payload, path: Path) -> None:
    torch.save({"stem.weight": payload}, path)


@pytest.mark.parametrize("write", [plain_pickle, torch_file])
@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors"])
def test_a_pickle_for_a_checkpoint_is_refused_whatever_its_manifest_says(
    own_trained_run: Path, mark: Path, write: Callable[[Payload, Path], None], file: str
) -> None:
    folder = own_trained_run / NEWEST
    write(Payload(mark), folder / file)
    store = RunStore(own_trained_run)
    with pytest.raises(CheckpointDamaged, match="must have the sha256 of its manifest"):
        load_checkpoint(store, NEWEST)

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"][file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointDamaged, match=f"{file} is no safetensors"):
        load_checkpoint(store, NEWEST)
    fallen_back = latest_checkpoint(store, "supernet")
    assert fallen_back is not None and fallen_back.step == 40


YAMLS = [
    "!!python/object/apply:os.mkdir [{mark}]",
    "seed: !!python/object/apply:os.mkdir [{mark}]",
    "seed: !!python/object/new:os.mkdir [{mark}]",
    "data: !!python/name:os.mkdir",
    "search: !!python/module:antigravity",
]


@pytest.mark.parametrize("text", YAMLS)
def test_yaml_that_names_python_objects_is_refused(
    command: Any, own_trained_run: Path, tmp_path: Path, mark: Path, text: str
) -> None:
    config = tmp_path / "hostile.yaml"
    config.write_text(text.format(mark=mark))
    done = command("run", "--local", "--config", config, "--out", tmp_path / "out")
    assert done.code == 2 and "is not valid YAML" in done.err
    assert not (tmp_path / "out").exists()

    shutil.copy(config, own_trained_run / "config.yaml")
    with pytest.raises(InvalidInput, match="damaged or of another version"):
        Run.open(own_trained_run)
    assert command("search", "--local", "--out", own_trained_run).code == 2


def test_an_override_that_names_a_python_object_is_refused(mark: Path) -> None:
    with pytest.raises(InvalidInput, match="not valid YAML"):
        load_config(None, [f"seed=!!python/object/apply:os.mkdir [{mark}]"])


def test_counts_with_pickled_objects_are_refused_whatever_their_manifest_says(
    command: Any, own_trained_run: Path, mark: Path
) -> None:
    (path,) = (own_trained_run / "data").glob("*.npy")
    np.save(path, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    write_manifest(path.parent)
    for name in ("supernet", "rows"):
        shutil.rmtree(own_trained_run / name)
    info = json.loads((own_trained_run / "run.json").read_text())
    del info["stages"]["train"]
    (own_trained_run / "run.json").write_text(json.dumps(info))
    done = command("train", "--local", "--out", own_trained_run)
    assert done.code == 2 and f"{path.name} is damaged" in done.err


def test_a_tokenizer_with_code_of_its_own_is_loaded_without_it(
    command: Any, tiny_config: Path, trained_run: Path, tmp_path: Path, mark: Path
) -> None:
    folder = tmp_path / "tokenizer"
    shutil.copytree(trained_run / "data/tokenizer", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "Evil"
    settings["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: ...\n")
    done = command(
        *("run", "--local", "--config", tiny_config, "--out", tmp_path / "out"),
        *("--set", f"data.tokenizer={folder}"),
    )
    assert done.code == 2 and "data.tokenizer must be" in done.err


def test_a_leaderboard_with_a_pickled_type_is_read_as_plain_numbers(
    own_trained_run: Path, mark: Path
) -> None:
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Payload(mark)),
    }
    rank = pa.field("rank", pa.int64(), metadata=metadata)
    schema = pa.schema([rank, pa.field("architecture", pa.string())])
    table = pa.table({"rank": [1], "architecture": ["identity"]}, schema)
    parquet.write_table(table, own_trained_run / "leaderboard.parquet")
    assert list(load_leaderboard(own_trained_run)["rank"]) == [1]


def test_looking_at_a_run_imports_no_code_that_its_configuration_names(
    command: Any, finished_run: Path, tmp_path: Path, mark: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    text = (run / "config.yaml").read_text()
    assert "user_code: null" in text and "name: evolution" in text
    text = text.replace("user_code: null", f"user_code: {run}")
    (run / "config.yaml").write_text(text.replace("name: evolution", "name: evil:Searcher"))
    assert command("show", run).code == 0
    assert command("report", "--out", run).code == 0


def test_transformers_runs_the_code_of_an_export_only_when_told_to(finished_run: Path) -> None:
    from transformers import AutoModelForMaskedLM

    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForMaskedLM.from_pretrained(finished_run / "export", trust_remote_code=False)
    assert not list((finished_run / "export").glob("*.bin"))


PICKLES = ("pickle", "cloudpickle", "dill", "joblib")
SENDS_ALONE = "cloudpickle.register_pickle_by_value"
"""Says how Ray is to send a function, and reads nothing."""


def calls(path: Path) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Every call in a file: its function's dotted name, its constant keywords, its line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            constants = {
                word.arg: word.value.value
                for word in node.keywords
                if word.arg and isinstance(word.value, ast.Constant)
            }
            yield ast.unparse(node.func), constants, node.lineno


def test_nothing_in_the_code_reads_a_format_that_can_run_code() -> None:
    forbidden = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "compile"}
    found = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name, words, line in calls(path):
                unsafe = (
                    name in forbidden
                    or name.split(".")[0] in ("pickle", "cloudpickle", "dill", "joblib")
                    and name
                    != "cloudpickle.register_pickle_by_value"  # says how Ray sends, no more
                    or name.endswith("read_pickle")
                    or (name == "torch.load" and words.get("weights_only") is not True)
                    or (name == "np.load" and words.get("allow_pickle") is not False)
                    or words.get("trust_remote_code") is True
                    or words.get("allow_pickle") is True
                )
                if unsafe:
                    found.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert found == []
