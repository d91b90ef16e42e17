"""The run's folder: whole writes, immutable rows."""

import os
from pathlib import Path

import pytest

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.write_json("a/b.json", {"x": [1, 2.5, None]})
    assert store.read_json("a/b.json") == {"x": [1, 2.5, None]}
    assert store.names("a") == ["b.json"]


def test_a_uri_reaches_the_same_folder_as_a_path(tmp_path: Path) -> None:
    RunStore(tmp_path).write_bytes("x", b"1")
    assert RunStore(f"file://{tmp_path}").read_bytes("x") == b"1"


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"a\.json"):
        RunStore(tmp_path).read_json("a.json")


def test_rows_come_back_in_the_order_of_writing_over_several_writers(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first = store.row_writer("score")
    first.write([{"n": 1}, {"n": 2}])
    first.write([{"n": 3}])
    store.row_writer("train").write([{"n": 100}])
    store.row_writer("score").write([{"n": 4}])
    assert [row["n"] for row in store.rows("score")] == [1, 2, 3, 4]


def test_writers_with_different_labels_do_not_overwrite_each_other(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    writers = [store.row_writer("retrain", label) for label in ("best", "control_0", "control_1")]
    for number, writer in enumerate(writers):
        writer.write([{"n": number}])
    store.row_writer("retrain", "control_0").write([{"n": 3}])
    assert sorted(row["n"] for row in store.rows("retrain")) == [0, 1, 2, 3]


def test_writing_no_rows_makes_no_part(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    store.row_writer("score").write([])
    assert store.names("rows") == []


def test_rows_with_nan_are_refused_rather_than_written_as_broken_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        RunStore(tmp_path).row_writer("score").write([{"loss": float("nan")}])


def test_a_write_that_dies_midway_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path)
    store.write_bytes("x", b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageFailed, match="No space left"):
        store.write_bytes("x", b"after")
    assert store.read_bytes("x") == b"before"
    assert os.listdir(tmp_path) == ["x"]
