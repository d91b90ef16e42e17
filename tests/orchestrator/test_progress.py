"""Progress on a terminal and elsewhere."""

import io
import sys

import pytest

from orchestrator.progress import Progress, format_line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_text_below_the_bar_and_clears_it(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("search", total=4, unit="child", below=2) as progress:
        progress.at(1)
        progress.below(lambda: "first line\nsecond line\nthird line")
    shown = terminal.getvalue()
    assert "first line" in shown and "second line" in shown
    assert "third line" not in shown


def test_the_text_is_made_at_most_once_a_second(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    made = []
    with Progress("search", total=4, unit="child", below=2) as progress:
        for _ in range(50):
            progress.below(lambda: made.append(1) or "text")
    assert len(made) == 1


def test_elsewhere_there_is_one_line_and_no_text_is_made(capsys):
    with Progress("search", total=4, unit="child", below=2) as progress:
        progress.at(2, note="best 3.1")
        progress.below(lambda: pytest.fail("made for nobody"))
    assert capsys.readouterr().err.count("\n") == 1


def test_rate_and_time_left_follow_from_what_was_done_now():
    line = format_line(
        "search", done=60, total=100, fresh=20, seconds=10.0, unit="child", note="best 3"
    )
    assert line == "search         60/100   60%      2.0 child/s  left 00:20  best 3"
