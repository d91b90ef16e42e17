"""Rows shown in TensorBoard, W&B, MLflow and Optuna: each once, and read back from there."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import search
from orchestrator.config import parse
from orchestrator.runs import Run
from orchestrator.store import RunStore
from orchestrator.trackers import Trackers, check_trackers
from supernet.errors import InvalidInput
from supernet.space import Architecture

CANDIDATES = 12


def score(architecture: Architecture) -> dict[str, float]:
    operators = architecture.operators
    if operators[0] == "identity":
        raise ValueError("no identity first")
    return {"value": float(operators.count("conv3")), "size": float(len(set(operators)))}


def searched(out: Path, *trackers: dict[str, str], candidates: int = CANDIDATES) -> RunStore:
    values = {
        "space": {"layers": 3},
        "search": {
            "searcher": {"name": "random"},
            "candidates": candidates,
            "objectives": {"value": "max", "size": "min"},
        },
        "trackers": list(trackers),
    }
    search(out, config=parse(values), scorer=score, local=True)
    return RunStore(out)


def rows_of(store: RunStore) -> list[dict]:
    rows = store.rows("score")
    assert len(rows) == CANDIDATES and sum(row["error"] is not None for row in rows) > 0
    return rows


def test_tensorboard_reads_every_score(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    rows = rows_of(searched(tmp_path / "run", {"name": "tensorboard"}))
    events = event_accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = {event.step: event.value for event in events.Scalars("score/value")}
    assert found == {n: row["value"] for n, row in enumerate(rows) if row["error"] is None}


def test_optuna_reads_every_score_failed_ones_included(tmp_path):
    import optuna
    from optuna.storages.journal import JournalFileBackend

    rows = rows_of(searched(tmp_path / "run", {"name": "optuna"}))
    storage = optuna.storages.JournalStorage(
        JournalFileBackend(str(tmp_path / "run" / "optuna.journal"))
    )
    study = optuna.load_study(study_name="run", storage=storage)
    trials = {trial.user_attrs["architecture"]: trial for trial in study.trials}
    assert len(study.trials) == len(trials) == len(rows)
    for row in rows:
        trial = trials[row["architecture"]]
        assert "-".join(trial.params.values()) == row["architecture"]
        assert trial.values == (None if row["error"] else [row["value"], row["size"]])
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]


def test_mlflow_reads_every_score(tmp_path):
    tracking = pytest.importorskip("mlflow.tracking")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    rows = rows_of(searched(tmp_path / "run", {"name": "mlflow", "tracking_uri": uri}))
    client = tracking.MlflowClient(uri)
    experiment = client.get_experiment_by_name("magic-nas")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "score/value")
    assert {metric.step: metric.value for metric in history} == {
        n: row["value"] for n, row in enumerate(rows) if row["error"] is None
    }


def test_wandb_takes_every_score(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows = rows_of(searched(tmp_path / "run", {"name": "wandb"}))
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found = {}
    for data in leveldb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "score/value" in items:
            found[json.loads(items["score/step"])] = json.loads(items["score/value"])
    assert found == {n: row["value"] for n, row in enumerate(rows) if row["error"] is None}


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, after W&B's seven bytes of header."""
    block_size, place, parts = 32768, 7, b""
    while place + 7 <= len(data):
        left = block_size - place % block_size
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


@pytest.mark.parametrize("name", ["tensorboard", "optuna"])
def test_a_tracker_added_later_gets_the_earlier_rows_once(tmp_path, name):
    store = searched(tmp_path / "run")
    assert not store.exists("tensorboard") and not store.exists("optuna.journal")
    config = parse({**Run.open(store.uri).config.model_dump(), "trackers": [{"name": name}]})
    for _ in range(2):
        with Trackers(Run(store, config)) as trackers:
            trackers.catch_up()
            trackers.catch_up()
    sent = store.read_json("trackers.json")[name]["score"]
    assert sent == CANDIDATES
    if name == "optuna":
        import optuna
        from optuna.storages.journal import JournalFileBackend

        backend = JournalFileBackend(str(store.local_path("optuna.journal")))
        study = optuna.load_study(study_name="run", storage=optuna.storages.JournalStorage(backend))
        assert len(study.trials) == CANDIDATES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "tensorbord"}, "trackers are tensorboard, wandb, mlflow, optuna, but got"),
        ({"project": "nas"}, "but got name=None"),
        ({"name": "wandb", "projekt": "nas"}, "no setting 'projekt'; it has: project, entity"),
        ({"name": "tensorboard", "folder": "x"}, "no setting 'folder'; it has: none"),
    ],
)
def test_what_is_no_tracker_is_refused(settings, message):
    with pytest.raises(InvalidInput, match=message):
        check_trackers([settings])


def test_a_tracker_whose_library_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(InvalidInput, match=r"pip install 'magic-nas\[mlflow\]'"):
        check_trackers([{"name": "mlflow"}])
