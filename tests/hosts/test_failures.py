"""The short form of `python -m tests.hosts`: two failures of a search, once each."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hosts.cases import CASES, Lab
from tests.hosts.machines import why_not
from tests.hosts.workload import Prepared

REASON = why_not()
pytestmark = [pytest.mark.hosts, pytest.mark.skipif(bool(REASON), reason=REASON or "")]
OUT = Path("/var/tmp/magic-nas-short")
"""Hosts have a /tmp of their own."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Prepared(OUT / "prepared")) as lab:
        yield lab


@pytest.mark.parametrize("name", ["driver-killed", "worker-host-killed"])
def test_a_search_on_three_hosts_loses_nothing_when(lab: Lab, name: str) -> None:
    found = lab.try_case(CASES[name], "search", OUT / name)
    print(found)
    assert found["ok"], found["happened"]
    assert found["rows_lost"] == 0
