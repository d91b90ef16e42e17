"""The folder of real data, where there is one."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    if "MAGIC_NAS_DATA" not in os.environ:
        pytest.skip("MAGIC_NAS_DATA is not set: it names the folder that has glue and squad")
    return Path(os.environ["MAGIC_NAS_DATA"])
