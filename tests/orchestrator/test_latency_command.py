"""Latency in a run: measured before the search that needs it, and the winners after it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from orchestrator.leaderboard import load_leaderboard
from orchestrator.store import RunStore

QUICK = ("--set", "latency.repeats=5", "--set", "latency.held_out=5")


@pytest.fixture(scope="module")
def limited_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """A search with latency among limits and objectives."""
    from orchestrator import load_config, run

    out = tmp_path_factory.mktemp("limited") / "run"
    shutil.copytree(trained_run, out)
    settings = {
        "latency.repeats": 5,
        "latency.held_out": 5,
        "search.limits": "latency_ms <= 1e3 and num_params <= 6e3",
        "search.objectives": "{val_loss_nats: min, latency_ms: min}",
    }
    config = load_config(out / "config.yaml", [f"{key}={value}" for key, value in settings.items()])
    (out / "config.yaml").write_text(config.to_yaml())
    run(config, out=out, local=True, only=("data", "train", "search", "report"))
    return out


def test_the_table_is_printed_and_kept(command: Any, own_trained_run: Path) -> None:
    done = command("latency", own_trained_run, *QUICK)
    assert done.code == 0, done.err
    table = RunStore(own_trained_run).read_json("latency.json")
    for name, ms in table["operators_ms"].items():
        assert name in done.out and f"{ms:.3f} ms" in done.out
    assert f"by {table['median_error']:.1%} (median)" in done.out
    assert len(table["held_out"]) == table["settings"]["repeats"] == 5
    assert "winners" not in table


def test_a_search_that_needs_latency_measures_it_first_and_the_winners_last(
    limited_run: Path,
) -> None:
    store = RunStore(limited_run)
    table = store.read_json("latency.json")
    board = load_leaderboard(limited_run)
    for row in board.to_dict("records"):
        parts = [table["operators_ms"][name] for name in row["architecture"].split("-")]
        assert row["latency_ms"] == pytest.approx(table["ends_ms"] + sum(parts))
    winners = [child["architecture"] for child in table["winners"]]
    assert winners == list(board["architecture"].head(10))
    page = store.read_bytes("report.html").decode()
    assert "<h2>Latency</h2>" in page and "winners by" in page


def test_a_table_that_rows_were_scored_with_stays(command: Any, limited_run: Path) -> None:
    before = RunStore(limited_run).read_json("latency.json")
    done = command("latency", limited_run, *QUICK)
    assert done.code == 2
    assert "measure in another run's folder" in done.err
    assert RunStore(limited_run).read_json("latency.json") == before


def test_a_limit_below_the_fastest_child_is_refused(command: Any, own_trained_run: Path) -> None:
    assert command("latency", own_trained_run, *QUICK).code == 0
    config = own_trained_run / "config.yaml"
    config.write_text(config.read_text().replace("num_params <= 6e3", "latency_ms <= 1e-6"))
    done = command("search", "--out", own_trained_run, "--local")
    assert done.code == 2
    assert "the smallest possible latency_ms is" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "latency.device=cuda:9"], "latency.device must be a device of this machine"),
        (["--set", "latency.repeats=1"], "latency.repeats must be greater than or equal to 5"),
        (["--set", "search.candidates=3"], "changes nothing but keys of 'latency'"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused(
    command: Any, own_trained_run: Path, options: list[str], message: str
) -> None:
    done = command("latency", own_trained_run, *options)
    assert done.code == 2
    assert message in done.err
    assert not RunStore(own_trained_run).exists("latency.json")


def test_a_damaged_table_is_refused(command: Any, own_trained_run: Path) -> None:
    RunStore(own_trained_run).write_json("latency.json", {"device": "cpu"})
    done = command("search", "--out", own_trained_run, "--local")
    assert done.code == 2
    assert "latency.json in the run" in done.err and "is damaged" in done.err
