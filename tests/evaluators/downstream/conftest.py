"""The folder of real data, where there is one, and tokenizers."""

import os
import string
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def data_folder() -> Path:
    if "MAGIC_NAS_DATA" not in os.environ:
        pytest.skip("MAGIC_NAS_DATA is not set: it names the folder that has glue and squad")
    return Path(os.environ["MAGIC_NAS_DATA"])


@pytest.fixture(scope="session")
def letters() -> Any:
    """BERT's tokenizer with a vocabulary of letters: a word has as many tokens as letters."""
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters)]
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})


@pytest.fixture(scope="session")
def bert(data_folder: Path) -> Any:
    """BERT's uncased tokenizer."""
    from transformers import BertTokenizerFast

    path = data_folder / "vocab" / "bert-base-uncased-vocab.txt"
    pieces = path.read_text(encoding="utf-8").splitlines()
    return BertTokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)})
