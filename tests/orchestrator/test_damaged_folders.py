"""Data and an export that differ from their manifests are refused before anything starts."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator import export_folder
from supernet.errors import InvalidInput


@pytest.mark.parametrize("file", ["valid/data.arrow", "tokenizer/tokenizer.json", "summary.json"])
def test_a_search_on_damaged_data_is_refused_and_writes_no_row(
    command: Any, content: Any, own_trained_run: Path, file: str
) -> None:
    damaged = own_trained_run / "data" / file
    damaged.write_bytes(damaged.read_bytes() + b" ")
    before = content(own_trained_run / "rows")
    done = command("search", "--local", "--out", own_trained_run)
    assert done.code == 2 and f"{damaged} must have the sha256" in done.err
    assert content(own_trained_run / "rows") == before


def test_a_damaged_export_is_refused(finished_run: Path, tmp_path: Path) -> None:
    assert export_folder(finished_run) == finished_run / "export"
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    with (out / "export" / "modeling_magic_nas.py").open("a") as code:
        code.write("\nprint('not ours')\n")
    with pytest.raises(InvalidInput, match=r"modeling_magic_nas\.py must have the sha256"):
        export_folder(out)
    (out / "export" / "manifest.json").unlink()
    with pytest.raises(InvalidInput, match="run 'magic-nas export'"):
        export_folder(out)
