"""A run's folder on an object store, through a real S3 interface."""

import socket
import time
from pathlib import Path

import pytest

from orchestrator.store import RunStore
from supernet.errors import InvalidInput, StorageFailed


def test_a_file_is_read_back_as_it_was_written(s3: str) -> None:
    store = RunStore(s3.format("plain/run"))
    store.write_json("a/b.json", {"x": [1, 2.5, None]})
    again = RunStore(store.uri)
    assert again.read_json("a/b.json") == {"x": [1, 2.5, None]}
    assert again.names("a") == ["b.json"] and again.names("") == ["a"]
    assert again.exists("a/b.json") and again.exists("a") and not again.exists("a/c.json")
    assert (store.name, store.uri_of("a/b.json")) == ("run", "s3://runs/plain/run/a/b.json")
    again.delete("a")
    again.delete("nothing")
    assert not store.exists("a/b.json") and store.names("a") == []


def test_a_missing_file_is_an_error_that_names_it(s3: str) -> None:
    with pytest.raises(InvalidInput, match=r"a\.json"):
        RunStore(s3.format("missing")).read_json("a.json")


def test_rows_come_back_in_the_order_of_writing_over_several_writers(s3: str) -> None:
    store = RunStore(s3.format("rows"))
    for start in range(0, 60, 3):
        store.row_writer("score").write([{"n": start + more} for more in range(3)])
    store.row_writer("train").write([{"n": 100}])
    assert [row["n"] for row in store.rows("score")] == list(range(60))


def test_a_storage_that_can_be_written_is_left_as_it_was(s3: str, tmp_path: Path) -> None:
    store = RunStore(s3.format("probe"))
    store.check_writable()
    assert store.names("") == []
    RunStore(tmp_path / "new" / "run").check_writable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://host/run", "s3://, gs://, file://, but got 'ftp://host/run'"),
        ("s3://", "BUCKET/FOLDER"),
        ("s3://bucket", "BUCKET/FOLDER"),
        ("s3:///run", "BUCKET/FOLDER"),
        ("gs://bucket/", "BUCKET/FOLDER"),
        ("s3://bucket/run?endpoint=host", "options region, scheme, endpoint_override"),
        ("s3://key@bucket/run", "nothing else"),
    ],
)
def test_a_uri_that_names_no_folder_is_refused_with_the_rule(uri: str, says: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        RunStore(uri)
    assert says in str(raised.value)


def test_a_bucket_that_is_not_there_is_refused(s3: str) -> None:
    store = RunStore(s3.replace("//runs/", "//other/").format("run"))
    with pytest.raises(InvalidInput, match=r"s3://other/run.*NO_SUCH_BUCKET.*name another folder"):
        store.check_writable()


def test_an_endpoint_where_nothing_listens_is_refused_within_seconds() -> None:
    store = RunStore("s3://runs/run?endpoint_override=127.0.0.1:1&scheme=http")
    began = time.monotonic()
    with pytest.raises(InvalidInput, match="127.0.0.1:1.*not connect"):
        store.check_writable()
    with pytest.raises(StorageFailed, match="127.0.0.1:1"):
        store.exists("config.yaml")
    assert time.monotonic() - began < 30


def test_an_endpoint_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.filesystems.SILENT_S", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = "{}:{}".format(*silent.getsockname())
        store = RunStore(f"s3://runs/run?endpoint_override={address}&scheme=http")
        with pytest.raises(StorageFailed, match="too slow"):
            store.names("rows")


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="must be a folder, but is a file|every node can write"):
        RunStore(tmp_path / "file" / "run").check_writable()
