"""Decides which text is for training, validation and test, by a seeded hash of its key.

The key is the document itself, or its group (a module): equal keys never land in two splits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

SPLITS = ("train", "valid", "test")
_MAX_KEYS = 100_000


def key_hash(key: str, *, seed: int) -> int:
    """A number from 0 to 2**63 - 1, the same in every process."""
    digest = blake2b(key.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Borders:
    """Hashes below `test` are for test, those from there to below `valid` for validation."""

    test: int
    valid: int

    def split_of(self, hashed: int) -> str:
        if hashed < self.test:
            return "test"
        return "valid" if hashed < self.valid else "train"


class SplitPlan:
    """Sees all hashes and lengths, then places the borders so that splits have their share.

    Memory is bounded: beyond 100,000 different keys, the first ones stand for the rest.
    """

    def __init__(self) -> None:
        self._chars: dict[int, int] = {}

    @property
    def num_keys(self) -> int:
        return len(self._chars)

    def add(self, hashed: int, *, chars: int) -> None:
        if hashed in self._chars or len(self._chars) < _MAX_KEYS:
            self._chars[hashed] = self._chars.get(hashed, 0) + chars

    def borders(self, *, valid_fraction: float, test_fraction: float) -> Borders:
        """Borders that give each split at least one key where there are three."""
        hashes = sorted(self._chars)
        if len(hashes) < len(SPLITS):
            return Borders(0, 0)
        chars = [self._chars[hashed] for hashed in hashes]
        total = sum(chars)
        num_test = _num_for(chars[:-2], share=test_fraction * total)
        num_valid = _num_for(chars[num_test:-1], share=valid_fraction * total)
        return Borders(hashes[num_test], hashes[num_test + num_valid])


def _num_for(chars: list[int], *, share: float) -> int:
    """How many of the keys, from the first, come closest to the share without half of it missing.

    At least one.
    """
    taken = 0
    for count, size in enumerate(chars):
        if taken >= share / 2 and abs(taken - share) <= abs(taken + size - share):
            return max(count, 1)
        taken += size
    return len(chars)


def stretches(text: str, *, max_chars: int) -> Iterator[str]:
    """The text in contiguous pieces, cut between paragraphs, else lines, else words."""
    start = 0
    while len(text) - start > max_chars:
        border = _border(text, start, start + max_chars)
        yield text[start:border]
        start = border
    yield text[start:]


def _border(text: str, start: int, end: int) -> int:
    for separator in ("\n\n", "\n", " "):
        found = text.rfind(separator, start + (end - start) // 2, end)
        if found >= 0:
            return found + len(separator)
    return end
