"""Progress of a stage: a bar on a terminal, elsewhere one line per interval with fixed columns."""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm

LINE_S = 15.0
"""Seconds between lines where the output is no terminal."""
BELOW_S = 1.0
"""Seconds between two looks of what stands below the bar."""


class Progress:
    """Done, in all, rate and time left of one stage; `total` 0: not known.

    Args:
        run: its name.
        below: so many lines of text are kept below the bar on a terminal.
    """

    def __init__(
        self, run: str, stage: str, *, total: int, unit: str, initial: int = 0, below: int = 0
    ) -> None:
        self._where = f"{run} {stage:<8}"
        self._terminal = has_terminal()
        self._bar = tqdm(
            total=total or None,
            initial=initial,
            desc=self._where,
            unit=f" {unit}",
            dynamic_ncols=True,
            disable=not self._terminal,
        )
        self._below = [
            tqdm(bar_format="{desc}", position=number, leave=False, disable=False)
            for number in range(1, below + 1 if self._terminal else 1)
        ]
        self._shown_at = 0.0
        self._total, self._unit, self._initial = total, unit, initial
        self._done: float = initial
        self._note = ""
        self._began = time.monotonic()
        self._lined_at = self._began

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for line in self._below:
            line.close()
        self._bar.close()
        if not self._terminal:
            self._line()

    def at(self, done: float, note: str = "", *, total: int | None = None) -> None:
        """Say how many are done, with a note such as the loss, and of how many if that changed.

        Parts of one count for the rate and the time left.
        """
        if total is not None:
            self._total = self._bar.total = total
        if done < self._done:
            self._bar.reset()
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(int(done) - self._bar.n)
        self._done, self._note = done, note or self._note
        if not self._terminal and time.monotonic() - self._lined_at >= LINE_S:
            self._line()

    def below(self, text: Callable[[], str]) -> None:
        """Show a text's first lines below the bar; it is made only where and when it is shown."""
        if not self._below or time.monotonic() - self._shown_at < BELOW_S:
            return
        self._shown_at = time.monotonic()
        lines = text().splitlines()
        for number, bar in enumerate(self._below):
            bar.set_description_str(lines[number] if number < len(lines) else "")

    def _line(self) -> None:
        self._lined_at = time.monotonic()
        print(
            format_line(
                self._where,
                done=self._done,
                total=self._total,
                fresh=self._done - self._initial,
                seconds=self._lined_at - self._began,
                unit=self._unit,
                note=self._note,
            ),
            file=sys.stderr,
            flush=True,
        )


def has_terminal() -> bool:
    """Whether stderr is a terminal on which a bar can be drawn: not one of no width."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


def quieten_bars() -> None:
    """Hugging Face's libraries, once loaded, draw no bars where there is no terminal either."""
    if not has_terminal():
        for library in ("HUB", "DATASETS"):
            os.environ[f"HF_{library}_DISABLE_PROGRESS_BARS"] = "1"


def format_line(
    where: str, *, done: float, total: int, fresh: float, seconds: float, unit: str, note: str
) -> str:
    """`mine train     400/1,600  25%   4.2 step/s  left 04:45  loss 5.812 nats`.

    `fresh` of those done were done in the last `seconds`; the rate and the time left follow.
    """
    rate = fresh / seconds if seconds > 0 else 0.0
    count, left = f"{int(done):,}", ""
    if total:
        count = f"{int(done):,}/{total:,} {done / total:5.0%}"
        minutes, rest = divmod(round((total - done) / rate), 60) if rate else (0, 0)
        left = f"left {minutes:02d}:{rest:02d}" if rate else "left --:--"
    return f"{where} {count:>18} {rate:8.1f} {unit}/s  {left:<11} {note}".rstrip()
