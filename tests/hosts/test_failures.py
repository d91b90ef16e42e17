"""The short form of `python -m tests.hosts`: a search loses a host, once."""

from pathlib import Path

import pytest

from tests.hosts.cases import CASES, Lab
from tests.hosts.machines import why_not
from tests.hosts.workload import Prepared

REASON = why_not()
pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(REASON), reason=REASON or "")]
OUT = Path("/var/tmp/magic-nas-short")
"""Hosts have a /tmp of their own."""


def test_a_search_on_three_hosts_loses_nothing_when_one_is_killed() -> None:
    with Lab(Prepared(OUT / "prepared")) as lab:
        found = lab.try_case(CASES["worker-host-killed"], "search", OUT / "worker-host-killed")
    print(found)
    assert found["ok"], found["happened"]
    assert found["rows_lost"] == 0
