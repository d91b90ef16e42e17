"""Docstrings of installed libraries: found without importing, cleaned, told apart."""

import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from supernet.data.docstrings import installed_docstrings, plain_english
from supernet.data.prepare import prepare
from supernet.data.shingles import SeenShingles
from supernet.data.summary import DataSummary
from supernet.errors import InvalidInput
from supernet.settings import DataSettings

MODULE = '''"""A module that would fail if it were imported, as the test proves."""

raise RuntimeError("imported")


class Thing:
    """A thing with a method, which has a docstring of its own, too."""

    def turn(self):
        """Turn the thing around until it faces the other way again."""


try:
    def nested():
        """A function within a try statement is found as well as others."""
except ImportError:
    pass


def short():
    """Too short."""


def copied():
    """Turn the thing around until it faces the other way again."""
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    package = tmp_path / "some_library"
    (package / "deep" / "er").mkdir(parents=True)
    (package / "tests").mkdir()
    (package / "__init__.py").write_text("")
    (package / "deep" / "er" / "module.py").write_text(MODULE)
    (package / "broken.py").write_text('"""Not\nPython""" [')
    (package / "tests" / "test_it.py").write_text('"""A docstring of a test: it is not read."""')
    monkeypatch.syspath_prepend(tmp_path)
    return package.name


def test_docstrings_are_found_by_parsing_and_never_by_importing(library: str) -> None:
    found = list(installed_docstrings([library]))
    assert [text.split()[0:2] for _, text in found] == [
        ["A", "module"],
        ["A", "thing"],
        ["Turn", "the"],
        ["A", "function"],
    ]
    assert {group for group, _ in found} == {"some_library.deep.er"}
    assert library not in sys.modules


def test_a_library_that_is_not_installed_is_named() -> None:
    with pytest.raises(InvalidInput, match="'no_such_library' is not; install it"):
        next(installed_docstrings(["no_such_library"]))


def test_examples_fences_and_rules_are_left_out() -> None:
    docstring = """Add two numbers.

    Notes
    -----
    They are added.

    >>> add(1,
    ...     2)
    3

    ```python
    add(1, 2)
    ```
    The end.
    """
    assert plain_english(docstring).split() == (
        ["Add", "two", "numbers.", "Notes", "They", "are", "added.", "The", "end."]
    )


def test_near_duplicates_are_refused_and_new_text_is_not() -> None:
    seen = SeenShingles(num_bits_log2=16)
    text = "the quick brown fox jumps over the lazy dog and runs away into the wood at night"
    assert seen.add_unless_near_duplicate(text)
    assert not seen.add_unless_near_duplicate(text.upper())
    assert not seen.add_unless_near_duplicate(text + " again")
    assert seen.add_unless_near_duplicate("in another wood a fox and a dog became good friends")


def test_the_order_is_fixed_and_mixes_libraries() -> None:
    first = list(islice(installed_docstrings(["numpy", "stdlib"]), 400))
    assert first == list(islice(installed_docstrings(["stdlib", "numpy"]), 400))
    counts = Counter(group.split(".")[0] for group, _ in first)
    assert set(counts) == {"numpy", "stdlib"}


def test_installed_docstrings_are_prepared_with_modules_kept_together(tmp_path: Path) -> None:
    settings = DataSettings(libraries=("numpy",), max_mb=0.4, vocab_size=1000)
    summary = prepare(settings, tmp_path / "data", seed=0)
    assert summary == DataSummary.load(tmp_path / "data")
    assert summary.source == "docstrings of the installed numpy"
    assert min(summary.num_sequences.values()) > 10
    assert max(summary.overlap_8gram.values()) < 0.5
