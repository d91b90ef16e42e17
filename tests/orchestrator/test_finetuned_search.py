"""Searches whose children are fine-tuned shortly: what wins, resuming, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import load_config, load_leaderboard, run
from orchestrator.config import Config
from orchestrator.finetuning.short import subset
from orchestrator.leaderboard import format_leaderboard
from orchestrator.report import write_report
from orchestrator.store import RunStore
from supernet.errors import RunConflict
from supernet.space import Architecture
from tests.orchestrator.tiny_glue import write_sst2

BLIND = ["identity-identity-identity", "feed_forward-identity-identity"]
"""Their first token, from which the classifier reads, sees no other."""
SEEING = ["conv7-identity-identity", "identity-attention-conv3"]
FINETUNE = {"task": "sst2", "steps": 60, "learning_rate": 1e-2, "batch_size": 16}
SEARCH = {
    "objectives": {"finetuned_score": "max"},
    "limits": "",
    "candidates": 4,
    "batch_size": 1,
}


def options(data: object, *, finetune: dict[str, Any] | None = None, **search: Any) -> list[str]:
    """Overrides of a search with short fine-tuning."""
    values = SEARCH | {"finetune": FINETUNE | {"data": str(data)} | (finetune or {})} | search
    return [f"search.{key}={json.dumps(value)}" for key, value in values.items()]


class InTurn:
    """Proposes the children that it is given and keeps what it is told."""

    def __init__(self, children: list[str], *, dies_at: int | None = None) -> None:
        self._children, self._dies_at, self._asked = children, dies_at, 0
        self.told: dict[str, Any] = {}

    def ask(self) -> Architecture:
        if self._asked == self._dies_at:
            raise RuntimeError("killed")
        self._asked += 1
        return Architecture.parse(self._children[self._asked - 1])

    def tell(self, architecture: Architecture, metrics: Any) -> None:
        self.told[str(architecture)] = metrics


def configured(folder: Path, data: Path, **changes: Any) -> Config:
    """The trained run in the folder, as if it had been trained for such a search."""
    config = load_config(folder / "config.yaml", options(data, **changes))
    RunStore(folder).write_bytes("config.yaml", config.to_yaml().encode())
    return config


def searched(folder: Path, config: Config, searcher: InTurn | None = None) -> list[dict[str, Any]]:
    run(config, out=folder, local=True, only=("search",), searcher=searcher)
    return list(RunStore(folder).rows("score"))


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SST-2."""
    return write_sst2(tmp_path_factory.mktemp("glue"))


def test_the_child_that_learns_the_task_wins(own_trained_run: Path, glue: Path) -> None:
    searcher = InTurn([*BLIND, *SEEING])
    rows = searched(own_trained_run, configured(own_trained_run, glue), searcher)
    scores = {row["architecture"]: row["finetuned_score"] for row in rows}
    assert [scores[text] for text in BLIND] == [0.5, 0.5]
    assert max(scores.values()) > 0.9
    assert max(scores, key=lambda text: scores[text]) in SEEING
    assert {text: told["finetuned_score"] for text, told in searcher.told.items()} == scores
    board = load_leaderboard(own_trained_run)
    assert board["finetuned_score"].is_monotonic_decreasing
    assert board["finetuned_score"].iloc[0] == max(scores.values())
    assert board["val_loss_nats"].notna().all() and (board["finetune_s"] > 0).all()
    assert "fine-tuned score" in format_leaderboard(board)
    write_report(RunStore(own_trained_run))
    assert "fine-tuned score" in (own_trained_run / "report.html").read_text()


def test_a_blind_child_sees_by_the_mean(own_trained_run: Path, glue: Path) -> None:
    config = configured(own_trained_run, glue, finetune={"pooling": "mean"}, candidates=1)
    (row,) = searched(own_trained_run, config, InTurn(BLIND[:1]))
    assert row["finetuned_score"] > 0.9


def test_a_search_that_was_killed_goes_on_with_the_same_examples(
    own_trained_run: Path, tmp_path: Path
) -> None:
    files = write_sst2(tmp_path / "files")
    config = configured(
        own_trained_run,
        files,
        finetune={"steps": 2, "train_examples": 20, "dev_examples": 10},
        objectives={"val_loss_nats": "min", "finetuned_score": "max"},
    )
    with pytest.raises(RuntimeError, match="killed"):
        searched(own_trained_run, config, InTurn([*BLIND, *SEEING], dies_at=2))
    before = list(RunStore(own_trained_run).rows("score"))
    assert len(before) == 2
    kept = (files / "SST-2" / "dev.tsv").read_text()
    write_sst2(files, turned=True)
    with pytest.raises(RunConflict, match="those of sst2 have changed"):
        searched(own_trained_run, config, InTurn([*BLIND, *SEEING]))
    write_sst2(files)
    assert (files / "SST-2" / "dev.tsv").read_text() == kept
    rows = searched(own_trained_run, config, InTurn([*BLIND, *SEEING]))
    assert rows[:2] == before
    assert [row["architecture"] for row in rows] == [*BLIND, *SEEING]


@pytest.fixture
def refused(command: Any, tiny_config: Path, tmp_path: Path) -> Callable[[list[str]], str]:
    """Runs with overrides that must be refused; returns the message."""

    def try_it(overrides: list[str]) -> str:
        given = [part for override in overrides for part in ("--set", override)]
        out = tmp_path / "out"
        done = command("run", "--config", tiny_config, "--out", out, "--local", *given)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        return str(done.err)

    return try_it


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune": None}, ["finetuned_score", "set search.finetune"]),
        ({"task": "sst"}, ["sst2"]),
        ({"task": "squad"}, ["search.finetune.task", "sst2", "squad"]),
        ({"max_length": 17}, ["search.finetune.max_length", "at most", "16"]),
        ({"data": "/nowhere"}, ["/nowhere"]),
        ({"scorer": {"name": "math:sqrt"}}, ["search.finetune", "search.scorer"]),
    ],
)
def test_what_cannot_be_is_refused(
    changes: dict[str, Any], words: list[str], refused: Any, glue: Path, tmp_path: Path
) -> None:
    if {"finetune", "scorer"} & set(changes):
        chosen = options(glue)
        chosen += [f"search.{key}={json.dumps(value)}" for key, value in changes.items()]
    else:
        chosen = options(glue, finetune=changes)
    message = refused(chosen)
    assert all(word in message for word in words), message
    assert not (tmp_path / "out").exists()


def test_a_bad_line_is_named_before_data_is_read(refused: Any, tmp_path: Path) -> None:
    files = write_sst2(tmp_path / "files")
    path = files / "SST-2" / "train.tsv"
    path.write_text(path.read_text() + "a dog\t7\n")
    message = refused(options(files))
    assert "train.tsv" in message and "line 194" in message
    assert not (tmp_path / "out" / "data").exists()


def test_a_subset_is_seeded_and_in_order() -> None:
    chosen = subset(range(100), 10, seed="a")
    assert len(set(chosen)) == 10 and chosen == sorted(chosen)
    assert chosen == subset(range(100), 10, seed="a") != subset(range(100), 10, seed="b")
    assert subset(range(3), 10, seed="a") == [0, 1, 2]
