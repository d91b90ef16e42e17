"""The leaderboard is a pure function of the score rows."""

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.leaderboard import (
    build_leaderboard,
    format_leaderboard,
    human,
    load_leaderboard,
    pareto_front,
    wrap_architecture,
    write_leaderboard,
)
from orchestrator.objectives import Objectives
from orchestrator.store import RunStore
from supernet.errors import InvalidInput


def score(architecture: str, loss: float | None, **others: Any) -> dict[str, Any]:
    row = {
        "architecture": architecture,
        "val_loss_nats": loss,
        "masked_accuracy": 0.25,
        "num_params": 1_234_567,
        "flops": 98_700_000,
        "wall_s": 0.5,
        "supernet_version": "step-30-abc",
        "batch_id": 0,
        "error": None,
    }
    return row | others


def test_the_best_child_comes_first_and_architecture_is_the_first_column() -> None:
    board = build_leaderboard([score("a-b", 5.0), score("a-a", 4.0), score("b-b", 4.5)])
    assert list(board["architecture"]) == ["a-a", "b-b", "a-b"]
    assert list(board["rank"]) == [1, 2, 3]
    assert board.columns[0] == "architecture"
    assert not {"error", "batch_id"} & set(board.columns)


def test_the_first_score_of_an_architecture_counts() -> None:
    board = build_leaderboard([score("a-b", 5.0), score("a-b", 4.0)])
    assert list(board["val_loss_nats"]) == [5.0]


def test_a_failed_score_is_dropped_and_a_later_good_one_counts() -> None:
    rows = [score("a-b", None, error="out of memory"), score("a-b", 4.0), score("b-b", None)]
    board = build_leaderboard(rows)
    assert list(board["architecture"]) == ["a-b"]


def test_equal_scores_are_ranked_the_same_way_in_any_order_of_rows() -> None:
    rows = [score("b-b", 4.0), score("a-b", 4.0), score("a-a", 4.0)]
    pd.testing.assert_frame_equal(build_leaderboard(rows), build_leaderboard(rows[::-1]))


def test_a_metric_of_the_user_keeps_its_column_after_the_known_ones() -> None:
    board = build_leaderboard([score("a-b", 4.0, latency_ms=1.5), score("a-a", 5.0)])
    assert board.columns[-1] == "latency_ms"


def test_a_missing_count_does_not_lose_the_row() -> None:
    board = build_leaderboard([score("a-b", 4.0, flops=None), score("a-a", 5.0)])
    assert board["flops"].isna().tolist() == [True, False]
    assert "–" in format_leaderboard(board)


def test_without_scores_the_leaderboard_is_empty_with_its_columns() -> None:
    board = build_leaderboard([])
    assert board.empty and board.columns[0] == "architecture"
    assert format_leaderboard(board) == "no child has been scored yet"
    assert pareto_front(board, PARETO).empty


@pytest.mark.parametrize("rows", [[score("a-b", 5.0), score("a-a", 4.0, latency_ms=2.0)], []])
def test_what_is_written_is_read_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    store = RunStore(tmp_path)
    store.row_writer("score").write(rows)
    write_leaderboard(store)
    pd.testing.assert_frame_equal(load_leaderboard(tmp_path), build_leaderboard(rows))


def test_a_run_without_a_leaderboard_is_told_which_command_writes_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="magic-nas search"):
        load_leaderboard(tmp_path)


def test_a_damaged_or_foreign_leaderboard_is_told_apart(tmp_path: Path) -> None:
    RunStore(tmp_path).write_bytes("leaderboard.parquet", b"no parquet")
    with pytest.raises(InvalidInput, match="is no leaderboard"):
        load_leaderboard(tmp_path)
    pd.DataFrame({"rank": [1]}).to_parquet(tmp_path / "leaderboard.parquet")
    with pytest.raises(InvalidInput, match="is no leaderboard: it has no column architecture"):
        load_leaderboard(tmp_path)


PARETO = Objectives((("val_loss_nats", "min"), ("num_params", "min")))
points = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=25)


@given(points)
def test_the_pareto_front_is_what_no_other_line_beats(pairs: list[tuple[int, int]]) -> None:
    frame = pd.DataFrame(pairs, columns=["num_params", "val_loss_nats"])
    expected = {
        index
        for index, (cost, loss) in enumerate(pairs)
        if not any(c <= cost and s <= loss and (c, s) != (cost, loss) for c, s in pairs)
    }
    front = pareto_front(frame, PARETO)
    assert set(front.index) == expected
    assert front["num_params"].is_monotonic_increasing
    assert front["val_loss_nats"].is_monotonic_decreasing


def test_the_pareto_front_takes_what_is_large_and_drops_lines_without_a_value() -> None:
    frame = pd.DataFrame({"flops": [1.0, 2.0, None, 3.0], "recall": [0.5, 0.6, 0.9, 0.5]})
    front = pareto_front(frame, Objectives((("recall", "max"), ("flops", "min"))))
    assert list(front.index) == [0, 1]


@pytest.mark.parametrize("layers", [1, 8, 24])
def test_the_terminal_table_fits_a_hundred_columns_and_loses_no_layer(layers: int) -> None:
    architecture = "-".join(["feed_forward", "attention"] * layers)[: layers * 12].rstrip("-")
    text = format_leaderboard(build_leaderboard([score(architecture, 4.25)]))
    assert max(map(len, text.splitlines())) <= 100
    start = text.splitlines()[0].index("architecture")
    assert "".join(line[start:] for line in text.splitlines()[1:]) == architecture
    assert io.StringIO(text).readline().split()[0] == "rank"


def test_the_terminal_table_says_how_many_lines_it_leaves_out() -> None:
    board = build_leaderboard(score(f"a-b{n}", 4.0 + n) for n in range(12))
    text = format_leaderboard(board, top=10)
    assert "(and 2 more)" in text and "a-b9" in text and "a-b10" not in text


def test_lines_of_an_architecture_break_after_a_separator() -> None:
    assert wrap_architecture("conv3-conv7-attention", 12) == ["conv3-conv7-", "attention"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(950, "950"), (1_250_000, "1.25 M"), (999_900, "1 M"), (31.2e9, "31.2 G"), (None, "–")],
)
def test_counts_are_short(number: float | None, text: str) -> None:
    assert human(number) == text
