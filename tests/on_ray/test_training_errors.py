"""Errors of training workers: told once, in a sentence, also where one worker alone meets them."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os
from torch import nn

class Picky(nn.Module):
    def __init__(self, *, hidden_size, dropout):
        super().__init__()
        if os.environ.get("RANK") == "1":
            raise ValueError("the second worker has no disk")

    def forward(self, hidden, mask):
        return hidden

    def flops(self, length):
        return 0
"""


@pytest.mark.ray
def test_an_error_that_one_worker_alone_meets_ends_the_command_at_once(
    cluster_address: str, tiny_config: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(CODE)
    words = ["train", "--config", tiny_config, "--out", tmp_path / "run", "--address"]
    settings = [
        "train.workers=2",
        f"user_code={tmp_path}",
        "space.candidates={skip: {kind: identity}, picky: {kind: 'own:Picky'}}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *map(str, words), cluster_address]
        + [f"--set={setting}" for setting in settings],
        capture_output=True,
        text=True,
        timeout=180,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "magic-nas: the second worker has no disk" in said and "Traceback" not in said, said
