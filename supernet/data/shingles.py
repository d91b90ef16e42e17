"""Runs of eight words or tokens, hashed: finds near-duplicate documents and overlap of splits.

T: tokens of a sequence.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

WORDS = 8
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MAX_DISTINCT_WORDS = 1_000_000


def shingle_hashes(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each run of eight along the last axis; shorter inputs count as one run."""
    width = min(WORDS, values.shape[-1])
    count = values.shape[-1] - width + 1
    hashes = np.zeros((*values.shape[:-1], count), dtype=np.uint64)
    for start in range(width):
        hashes = (hashes ^ values[..., start : start + count]) * _FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes


class SeenShingles:
    """Which shingles were seen before, in a bitmap: fixed memory, few false positives."""

    def __init__(self, *, num_bits_log2: int = 28) -> None:
        self._shift = np.uint64(64 - num_bits_log2)
        self._bits = np.zeros(1 << (num_bits_log2 - 3), dtype=np.uint8)
        self._words: dict[str, int] = {}

    def add_unless_near_duplicate(self, text: str) -> bool:
        """Remember the text's shingles, unless more than half of them were seen before.

        Returns:
            Whether the text is new.
        """
        hashes = self._hash(text)
        if not len(hashes):
            return False
        slots = hashes >> self._shift
        masks = np.left_shift(np.uint8(1), (slots & np.uint64(7)).astype(np.uint8))
        places = (slots >> np.uint64(3)).astype(np.int64)
        seen = (self._bits[places] & masks) != 0
        if seen.mean() > 0.5:
            return False
        np.bitwise_or.at(self._bits, places, masks)
        return True

    def _hash(self, text: str) -> NDArray[np.uint64]:
        words = text.lower().split()
        if not words:
            return np.zeros(0, dtype=np.uint64)
        if len(self._words) > _MAX_DISTINCT_WORDS:
            self._words.clear()
        return np.unique(shingle_hashes(np.array([self._word(w) for w in words], np.uint64)))

    def _word(self, word: str) -> int:
        known = self._words.get(word)
        if known is None:
            known = self._words[word] = zlib.crc32(word.encode())
        return known


def token_shingles(
    rows_BT: NDArray[np.int64], *, special_ids: tuple[int, ...]
) -> NDArray[np.uint64]:
    """Hashes of all runs of eight tokens without a special token in them."""
    hashes = shingle_hashes(rows_BT.astype(np.uint64))
    ordinary = ~np.isin(rows_BT, special_ids)
    whole = np.lib.stride_tricks.sliding_window_view(ordinary, WORDS, axis=-1).all(axis=-1)
    return hashes[whole]
