"""What training keeps: rows with their checkpoint, once; nothing of a driver that was replaced."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import load_config, run
from orchestrator.lease import LEASE, hold_lease
from orchestrator.runs import Run
from orchestrator.store import RunStore
from orchestrator.training import train_supernet
from supernet import training
from supernet.engine import PlainEngine
from supernet.errors import RunConflict


@pytest.fixture
def train(tiny_config: Path, tmp_path: Path) -> Callable[..., None]:
    """Trains the run in `tmp_path` as a worker does."""
    run(load_config(tiny_config), out=tmp_path, local=True, only=("data",))

    def train(report: Callable[[Any], None] = lambda _: None, holder: str | None = None) -> None:
        this = Run.open(tmp_path)
        train_supernet(
            this,
            make_engine=PlainEngine,
            plan=this.sampler().plan,
            report=report,
            device=torch.device("cpu"),
            holder=holder,
        )

    return train


def test_rows_whose_checkpoint_was_never_whole_are_not_there_twice(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, store = training.save_checkpoint, RunStore(tmp_path)

    def save_one(*arguments: Any, step: int, **more: Any) -> None:
        if step == 40:
            raise KeyboardInterrupt
        save(*arguments, step=step, **more)

    monkeypatch.setattr(training, "save_checkpoint", save_one)
    with pytest.raises(KeyboardInterrupt):
        train()
    assert [row["step"] for row in store.rows("train")] == [10, 20, 30, 40]
    monkeypatch.setattr(training, "save_checkpoint", save)
    train()
    assert [row["step"] for row in store.rows("train")] == [10, 20, 30, 40, 50, 60]
    assert sorted({row["step"] for row in store.rows("probe")}) == [20, 40, 60]
    assert len(store.rows("probe")) == 3 * 3


def test_training_whose_run_another_driver_has_taken_over_keeps_nothing_more(
    train: Callable[..., None], tmp_path: Path
) -> None:
    store = RunStore(tmp_path)

    def taken_over(row: dict[str, object]) -> None:
        if row["step"] == 30:
            store.write_json(LEASE, {**store.read_json(LEASE), "holder": "another"})

    with hold_lease(store) as holder:
        with pytest.raises(RunConflict, match="another one"):
            train(taken_over, holder)
        assert store.names("supernet") == ["step-00000020"]
        assert max(row["step"] for row in store.rows("train")) == 20
        with pytest.raises(RunConflict, match="another one"):
            train(holder=holder)
