"""The run's folder: whole writes, immutable rows."""

import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.runinfo import RUN_INFO, is_finished, read_info
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed

HOST = "?endpoint_override=127.0.0.1:1&scheme=http"
ODD = "%20 %? #1&é:+=%252F"
"""A folder's name with all that means something in a URI."""


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


def test_rows_of_a_kind_that_would_not_be_found_again_are_refused(tmp_path: Path) -> None:
    for kind, label in (("fine-tune", ""), ("score", "a-b"), ("Score", ""), ("", "")):
        with pytest.raises(ValueError, match="lower-case words"):
            RunStore(tmp_path).row_writer(kind, label)


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


@pytest.mark.parametrize("text", [b'{"n": 1}\n{"n": ', b"[1]\n", b"1\n", b"\xff\n", b"[" * 100_000])
def test_a_damaged_part_of_rows_is_named(tmp_path: Path, text: bytes) -> None:
    store = RunStore(tmp_path)
    store.row_writer("score").write([{"n": 1}])
    store.row_writer("score").write([{"n": 2}])
    store.write_bytes("rows/score-0002-000000.jsonl", text)
    with pytest.raises(InvalidInput, match=r"rows/score-0002-000000\.jsonl.*must.*put a whole"):
        store.rows("score")
    assert store.rows("train") == []


@pytest.mark.parametrize("text", ["[]", "1", '{"stages": []}', '{"interrupted_s": 1}', "{"])
def test_a_damaged_run_json_is_named(tmp_path: Path, text: str) -> None:
    store = RunStore(tmp_path)
    store.write_bytes(RUN_INFO, text.encode())
    for ask in (read_info, lambda store: is_finished(store, "train")):
        with pytest.raises(InvalidInput, match=r"run\.json in the run .*(must hold|valid JSON)"):
            ask(store)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        (f"s3://b/{quote('run%20x')}{HOST}", "b/run%20x"),
        (f"s3://b/run%2520x{HOST}", "b/run%20x"),
        (f"s3://b/run%3F1/%23{HOST}", "b/run?1/#"),
        (f"s3://b/a b/{HOST}", "b/a b"),
        (f"s3://b/{quote(ODD)}{HOST}", f"b/{ODD}"),
        ("gs://anonymous@b/run%2520x?scheme=http", "b/run%20x"),
        ("gs://b/run%3F1", "b/run?1"),
        ("file:///tmp/run%2520x%3F%23", "/tmp/run%20x?#"),
        ("/tmp/run%20x?#1", "/tmp/run%20x?#1"),
    ],
)
def test_the_uri_of_a_folder_names_the_same_folder(uri: str, path: str) -> None:
    store = RunStore(uri)
    assert store.path() == path
    again = RunStore(store.uri)
    assert (again.path(), again.uri) == (path, store.uri)


@pytest.mark.parametrize(
    "uri", ["s3://b/run#1", "s3://b/run#", "gs://b/run#1", "file:///tmp/run#1"]
)
def test_a_uri_with_a_fragment_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match=f"{re.escape(uri.partition('#')[0])}: write %23"):
        RunStore(uri)


def test_a_uri_with_an_option_that_has_no_value_is_refused() -> None:
    with pytest.raises(InvalidInput, match="takes the options region.* but got 1"):
        RunStore("s3://b/run?1")


def test_a_file_is_called_by_its_whole_path(tmp_path: Path) -> None:
    assert RunStore(tmp_path / "a?b").uri_of("x") == f"{tmp_path}/a?b/x"


def test_a_folder_is_removed_only_while_it_is_empty(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    store.delete_if_empty()
    store.write_bytes(".probe", b"1")
    store.delete_if_empty()
    assert store.exists(".probe")
    store.delete(".probe")
    store.delete_if_empty()
    assert not store.exists()
