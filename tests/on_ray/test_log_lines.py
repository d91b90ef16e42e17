"""What a run on a cluster writes where there is no terminal: few lines, of a run and a stage."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.store import RunStore

pytestmark = pytest.mark.ray

CHILDREN = 200
CODE = """
import warnings

def score(child):
    print("a line of the user's", child)
    warnings.warn(f"another one {child}")
    return {"value": float(len(str(child)))}
"""


def magic_nas(*arguments: str) -> tuple[list[str], list[str]]:
    """The lines of stdout and of stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr.splitlines()


def check(lines: list[str], run: str, *stages: str) -> None:
    """Each line has the run and one of the stages; no bar or colour is among them."""
    assert lines
    for line in lines:
        assert re.match(rf"(\(\w+ pid=\d+.*\) )?{run} ({'|'.join(stages)})\b", line), lines
        assert not {"\r", "\x1b"} & set(line)


def test_a_training_writes_few_lines_and_its_first_worker_says_where_it_goes_on(
    cluster_address: str, own_trained_run: Path
) -> None:
    store = RunStore(own_trained_run)
    done = store.read_json("run.json")
    store.write_json("run.json", {**done, "stages": {"data": done["stages"]["data"]}})
    store.delete(f"supernet/{store.names('supernet')[-1]}")
    out, err = magic_nas("train", "--out", str(own_trained_run), "--address", cluster_address)
    assert len(out) + len(err) <= 12, out + err
    check(err, "own", "start", "train")
    told = [line for line in err if "own train: supernet: goes on from step 40" in line]
    assert len(told) == 1 and re.match(r"\(\w+ pid=", told[0]), err


def test_a_search_writes_no_line_per_child(cluster_address: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "chatty.py").write_text(CODE)
    search = {
        "scorer": {"name": "chatty:score"},
        "objectives": {"value": "max"},
        "searcher": {"name": "random"},
        "candidates": CHILDREN,
        "evaluators": 2,
    }
    values = {"user_code": str(tmp_path / "code"), "space": {"layers": 6}, "search": search}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    where = ("--out", str(tmp_path / "mine"), "--address", cluster_address)
    _, err = magic_nas("search", "--config", str(tmp_path / "config.yaml"), *where)
    assert len(err) <= 8, err
    check(err, "mine", "start", "search")
