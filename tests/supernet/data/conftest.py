"""A small synthetic corpus, prepared once for all tests of the data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from supernet.data.prepare import prepare
from supernet.data.summary import DataSummary
from supernet.settings import DataSettings

SUBJECTS = ["the cat", "a dog", "some bird", "my horse", "one fish", "our cow", "that mouse"]
VERBS = ["eats", "sees", "chases", "likes", "finds", "hears", "follows", "meets"]
PLACES = ["in town", "by the river", "at night", "under a tree", "near home", "on the hill"]


def synthetic_documents(count: int, *, seed: int = 0, sentences: int = 12) -> list[str]:
    """Documents that differ by their number and are otherwise simple sentences."""
    rng = np.random.default_rng(seed)

    def sentence() -> str:
        words = (rng.choice(part) for part in (SUBJECTS, VERBS, SUBJECTS, PLACES))
        return " ".join(words) + "."

    return [
        f"Document {number}. " + " ".join(sentence() for _ in range(sentences))
        for number in range(count)
    ]


@pytest.fixture
def text_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a text into a file and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "text.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(synthetic_documents(300)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def settings(corpus_path: Path) -> DataSettings:
    return DataSettings(
        source=str(corpus_path),
        vocab_size=200,
        sequence_length=32,
        valid_fraction=0.1,
        test_fraction=0.1,
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, settings: DataSettings) -> Path:
    folder = tmp_path_factory.mktemp("run") / "data"
    prepare(settings, folder, seed=1)
    return folder


@pytest.fixture(scope="session")
def summary(prepared: Path) -> DataSummary:
    return DataSummary.load(prepared)
