"""Progress on a terminal and elsewhere."""

import fcntl
import os
import pty
import select
import struct
import sys
import termios
from collections.abc import Callable, Iterator

import pytest

from orchestrator.progress import Progress, format_line


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Callable[[], str]]]:
    """Makes stderr a real terminal of so many columns; what it shows is read from the other end."""
    ends = []

    def make(columns: int) -> Callable[[], str]:
        ours, theirs = pty.openpty()
        size = struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
        ends.extend([ours, theirs])
        monkeypatch.setattr(sys, "stderr", os.fdopen(theirs, "w", closefd=False))
        return lambda: read(ours)

    yield make
    for end in ends:
        os.close(end)


def read(end: int) -> str:
    """All that comes until nothing has come for a while."""
    text = b""
    while select.select([end], [], [], 0.3)[0]:
        text += os.read(end, 65536)
    return text.decode()


def test_a_terminal_shows_the_text_below_the_bar_and_clears_it(terminal):
    shown_by = terminal(100)
    with Progress("mine", "search", total=4, unit="child", below=2) as progress:
        progress.at(1)
        progress.below(lambda: "first line\nsecond line\nthird line")
    shown = shown_by()
    assert "first line" in shown and "second line" in shown
    assert "third line" not in shown


def test_a_terminal_of_no_width_gets_a_line_and_no_bar(terminal):
    shown_by = terminal(0)
    with Progress("mine", "search", total=4, unit="child", below=2) as progress:
        progress.at(2, note="best 3.1")
        progress.below(lambda: pytest.fail("made for nobody"))
    shown = shown_by()
    assert shown.startswith("mine search") and shown.count("\n") == 1
    assert "\r" not in shown.removesuffix("\r\n") and "\x1b" not in shown


def test_the_text_is_made_at_most_once_a_second(terminal):
    terminal(100)
    made = []
    with Progress("mine", "search", total=4, unit="child", below=2) as progress:
        for _ in range(50):
            progress.below(lambda: made.append(1) or "text")
    assert len(made) == 1


def test_elsewhere_there_is_one_line_and_no_text_is_made(capsys):
    with Progress("mine", "search", total=4, unit="child", below=2) as progress:
        progress.at(2, note="best 3.1")
        progress.below(lambda: pytest.fail("made for nobody"))
    assert capsys.readouterr().err.count("\n") == 1


def test_a_stage_that_ends_early_is_done(capsys):
    with Progress("mine", "search", total=400, unit="child") as progress:
        progress.at(20, total=20)
    assert "20/20  100%" in capsys.readouterr().err


def test_rate_and_time_left_follow_from_what_was_done_now():
    line = format_line(
        "mine search  ", done=60, total=100, fresh=20, seconds=10.0, unit="child", note="best 3"
    )
    assert line == "mine search         60/100   60%      2.0 child/s  left 00:20  best 3"


def test_parts_of_one_have_a_rate_and_a_time_left() -> None:
    line = format_line(
        "mine finetune", done=0.25, total=2, fresh=0.25, seconds=60.0, unit="job", note=""
    )
    assert line == "mine finetune          0/2   12%      0.0 job/s  left 07:00"


def test_a_bar_takes_parts_of_one(terminal: Callable[[int], Callable[[], str]]) -> None:
    shown = terminal(80)
    with Progress("mine", "finetune", total=2, unit="job") as progress:
        progress.at(0.25)
        progress.at(1.75, "sst2 0.812")
    assert "1/2" in shown()
