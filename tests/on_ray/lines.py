"""What every line that a command on a cluster writes must be."""

import re
from collections.abc import Sequence


def check_lines(lines: Sequence[str], run: str, *stages: str) -> None:
    """Each line has the run and one of the stages; no bar or colour is among them."""
    assert lines
    for line in lines:
        assert re.match(rf"(\(\w+ pid=\d+.*\) )?{run} ({'|'.join(stages)})\b", line), lines
        assert not {"\r", "\x1b"} & set(line)
