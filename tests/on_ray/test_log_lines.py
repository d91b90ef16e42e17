"""What a search on a cluster writes where there is no terminal: few lines, of a run and a stage."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.on_ray.lines import check_lines

pytestmark = pytest.mark.ray

CHILDREN = 200
CODE = """
import warnings

def score(child):
    print("a line of the user's", child)
    warnings.warn(f"another one {child}")
    return {"value": float(len(str(child)))}
"""


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
    command = [sys.executable, "-m", "orchestrator.cli", "search"]
    where = ["--out", tmp_path / "mine", "--address", cluster_address]
    done = subprocess.run(
        [*command, "--config", tmp_path / "config.yaml", *where],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) <= 8, lines
    check_lines(lines, "mine", "start", "search")
