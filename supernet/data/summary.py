"""What prepared data is: sizes, special tokens, and the bar that a model must get under."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.errors import InvalidInput

FILE_NAME = "summary.json"


@dataclass(frozen=True)
class DataSummary:
    """Written into the folder of prepared data, as summary.json."""

    source: str
    """A line on where the text is from."""
    vocab_size: int
    sequence_length: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    special_ids: tuple[int, ...]
    """Never masked, never a random replacement."""
    num_documents: dict[str, int]
    """Split to documents; a document that was cut for the split counts as several."""
    num_sequences: dict[str, int]
    num_tokens: dict[str, int]
    """Split to tokens, special ones included, padding not."""
    mask_probability: float
    seed: int
    unigram_nats: dict[str, float]
    """Split to the cross-entropy of the training unigrams on its masked targets."""
    overlap_8gram: dict[str, float]
    """Split to the fraction of its runs of eight tokens that the training split has too."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"special_ids": list(self.special_ids)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "DataSummary":
        return cls(**values | {"special_ids": tuple(values["special_ids"])})

    @classmethod
    def load(cls, folder: Path) -> "DataSummary":
        """Read the summary of a folder of prepared data.

        Raises:
            InvalidInput: if the folder holds no prepared data.
        """
        path = folder / FILE_NAME
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"prepared data has a {FILE_NAME}, but {path} cannot be read "
                f"({type(error).__name__}: {error}); prepare it again in another run, or put the "
                f"file back"
            ) from None

    def save(self, folder: Path) -> None:
        """Write the summary into the folder."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def check_batch(summary: DataSummary, *, batch_size: int) -> None:
    """Refuse a batch that the training split cannot fill.

    Raises:
        InvalidInput: if the training split has fewer sequences than one batch.
    """
    available = summary.num_sequences["train"]
    if available < batch_size:
        raise InvalidInput(
            f"the training split needs at least one batch of sequences, but has {available} of "
            f"{summary.sequence_length} tokens and batch_size is {batch_size}; give more text, "
            "shorter sequences or a smaller batch"
        )
