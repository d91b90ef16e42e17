"""The short form of `python -m tests.hosts`: two failures of a search, once each."""

from pathlib import Path

import pytest

from tests.hosts.cases import CASES, try_case
from tests.hosts.machines import why_not
from tests.hosts.workload import Prepared

REASON = why_not()
pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(REASON), reason=REASON or "")]
OUT = Path("/var/tmp/magic-nas-short")
"""Hosts have a /tmp of their own."""


@pytest.mark.parametrize("name", ["worker-host-killed", "driver-killed"])
def test_a_search_on_three_hosts_loses_nothing_when(name: str) -> None:
    found = try_case(CASES[name], "search", Prepared(OUT / "prepared"), OUT / name)
    print(found)
    assert found["ok"], found["happened"]
    assert found["rows_lost"] == 0
