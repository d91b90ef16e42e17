"""A run's folder on an object store, through a real S3 interface."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import quote

import pytest

from orchestrator.lease import LEASE, hold_lease
from orchestrator.node_copy import folder_here, folder_to_fill
from orchestrator.store import RunStore
from supernet.errors import InvalidInput, RunConflict, StorageFailed
from supernet.manifest import MANIFEST, write_manifest


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


def test_a_folder_of_any_name_is_reached_by_its_uri(s3: str) -> None:
    name = "odd/%20 ?#&é:+=%252F"
    store = RunStore(s3.format(quote(name)))
    store.write_bytes("x", b"1")
    assert RunStore(store.uri).read_bytes("x") == b"1"
    assert RunStore(s3.format("odd")).names("") == ["%20 ?#&é:+=%252F"]


def test_a_folder_is_removed_only_while_it_is_empty(s3: str) -> None:
    store = RunStore(s3.format("empty/run"))
    store.write_bytes(".probe", b"1")
    store.delete_if_empty()
    assert store.exists(".probe")
    store.delete(".probe")
    assert store.exists()
    store.delete_if_empty()
    assert not store.exists()


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


def test_one_driver_at_a_time_holds_a_run_and_leaves_no_lock(s3: str) -> None:
    store = RunStore(s3.format("lease/run"))
    with hold_lease(store), pytest.raises(RunConflict, match=str(os.getpid())), hold_lease(store):
        pass
    assert not store.exists(LEASE)


def test_a_driver_whose_lease_another_has_written_in_the_same_moment_gives_way(s3: str) -> None:
    store = RunStore(s3.format("lease/race"))
    other = {"holder": "other", "machine": "elsewhere boot pid:[1]", "host": "elsewhere"}
    lease = other | {"pid": 1, "began": 1.0, "at": time.time()}
    second = threading.Timer(0.5, lambda: RunStore(store.uri).write_json(LEASE, lease))
    second.start()
    with pytest.raises(RunConflict, match="process 1 on elsewhere"), hold_lease(store):
        pass
    second.join()
    assert store.read_json(LEASE)["holder"] == "other"


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A folder of two files with its manifest."""
    folder = tmp_path / "made"
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "data.arrow").write_bytes(bytes(range(256)) * 50_000)
    (folder / "summary.json").write_text("{}")
    write_manifest(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This node's cache, empty."""
    monkeypatch.setenv("MAGIC_NAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(store: RunStore, sealed: Path) -> None:
    with folder_to_fill(store, "data") as folder:
        shutil.copytree(sealed, folder)


def test_a_folder_reaches_a_node_once_and_whole(s3: str, sealed: Path, cache: Path) -> None:
    store = RunStore(s3.format("folders/run"))
    put(store, sealed)
    (here,) = [path for path in cache.iterdir() if path.is_dir()]
    assert folder_here(store, "data") == here
    shutil.rmtree(cache)
    code = (
        "import sys; from orchestrator.node_copy import folder_here; "
        "from orchestrator.store import RunStore; print(folder_here(RunStore(sys.argv[1]), 'data'))"
    )
    command = [sys.executable, "-c", code, store.uri]
    nodes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {node.communicate(timeout=120)[0].strip() for node in nodes} == {str(here)}
    assert {path.name for path in cache.iterdir()} == {here.name, f"{here.name}.lock"}
    for name in ("train/data.arrow", "summary.json", MANIFEST):
        assert (here / name).read_bytes() == (sealed / name).read_bytes()


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3: str, sealed: Path, cache: Path) -> None:
    store = RunStore(s3.format("folders/cached"))
    put(store, sealed)
    copy = folder_here(store, "data") / "train" / "data.arrow"
    copy.write_bytes(b"damaged")
    assert folder_here(store, "data") / "train" / "data.arrow" == copy
    assert copy.read_bytes() == (sealed / "train" / "data.arrow").read_bytes()


def test_a_file_that_differs_from_its_manifest_is_refused(
    s3: str, sealed: Path, cache: Path
) -> None:
    store = RunStore(s3.format("folders/damaged"))
    put(store, sealed)
    shutil.rmtree(cache)
    store.write_bytes("data/train/data.arrow", b"damaged")
    with pytest.raises(InvalidInput, match=r"train/data\.arrow must have the sha256"):
        folder_here(store, "data")
    store.delete("data/train")
    with pytest.raises(InvalidInput, match=r"cannot read data/train/data\.arrow"):
        folder_here(store, "data")
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_an_upload_that_ends_midway_leaves_no_folder(s3: str, sealed: Path, cache: Path) -> None:
    store = RunStore(s3.format("folders/half"))
    (sealed / "train" / "data.arrow").unlink()
    with pytest.raises(StorageFailed, match=r"data\.arrow"):
        put(store, sealed)
    assert store.exists("data/summary.json") and not store.exists(f"data/{MANIFEST}")
    with pytest.raises(InvalidInput, match=MANIFEST):
        folder_here(store, "data")
    assert not [path for path in cache.iterdir() if path.is_dir()]
