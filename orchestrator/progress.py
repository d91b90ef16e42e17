"""Progress on the terminal: a bar where there is one, else a line per interval."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LINE_S = 15.0
"""Seconds between lines where the output is no terminal."""


class Progress:
    """Done, in all, rate and time left of one stage."""

    def __init__(self, stage: str, *, total: int, unit: str, initial: int = 0) -> None:
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=f"{stage:<8}",
            unit=unit,
            mininterval=0.2 if terminal else LINE_S,
            maxinterval=1.0 if terminal else LINE_S,
            dynamic_ncols=terminal,
            ncols=None if terminal else 100,
            ascii=not terminal,
            leave=True,
        )
        self._terminal = terminal
        self._lined_at = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def at(self, done: int, note: str = "") -> None:
        """Say how many are done, with a note such as the loss."""
        if done == self._bar.n and not note:
            return
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
