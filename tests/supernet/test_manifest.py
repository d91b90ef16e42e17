"""The manifest of a folder finds what differs, and never leads out of the folder."""

import json
from pathlib import Path

import pytest

from supernet.errors import InvalidInput
from supernet.manifest import MANIFEST, check_manifest, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files and their manifest."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"")
    write_manifest(tmp_path)
    return tmp_path


def test_a_whole_folder_passes_and_its_manifest_names_all_of_it(folder: Path) -> None:
    check_manifest(folder)
    digests = read_manifest((folder / MANIFEST).read_bytes(), of="it")
    assert sorted(digests) == ["b", "inner/a"]
    (folder / "cache.pyc").write_bytes(b"of another program")
    check_manifest(folder)


def test_a_changed_byte_is_refused_with_its_file(folder: Path) -> None:
    (folder / "inner" / "a").write_bytes(b"2")
    with pytest.raises(InvalidInput, match=r"inner/a must have the sha256 of its manifest\.json"):
        check_manifest(folder)


@pytest.mark.parametrize("name", ["b", MANIFEST])
def test_a_missing_file_is_refused_with_its_name(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InvalidInput, match=f"{name} cannot be read"):
        check_manifest(folder)


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        '{"sha256": 3}',
        json.dumps({"sha256": {"../outside": "0"}}),
        json.dumps({"sha256": {"/etc/passwd": "0"}}),
    ],
)
def test_a_manifest_that_is_none_or_leads_out_of_the_folder_is_refused(manifest: str) -> None:
    with pytest.raises(InvalidInput, match=r"of data must give the sha256 of its files"):
        read_manifest(manifest.encode(), of="data")
