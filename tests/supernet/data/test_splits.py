"""The split is seeded, by key, near the fractions asked for, and never empty where avoidable."""

from hypothesis import given
from hypothesis import strategies as st

from supernet.data.splits import SPLITS, SplitPlan, key_hash, stretches


def split_sizes(lengths: list[int], *, seed: int = 0) -> dict[str, int]:
    plan = SplitPlan()
    hashes = [key_hash(str(number), seed=seed) for number in range(len(lengths))]
    for hashed, length in zip(hashes, lengths, strict=True):
        plan.add(hashed, chars=length)
    borders = plan.borders(valid_fraction=0.1, test_fraction=0.1)
    sizes = dict.fromkeys(SPLITS, 0)
    for hashed, length in zip(hashes, lengths, strict=True):
        sizes[borders.split_of(hashed)] += length
    return sizes


def test_a_key_has_the_same_hash_in_every_process_and_another_for_another_seed() -> None:
    assert key_hash("a module", seed=1) == 1739550253439894379
    assert key_hash("a module", seed=1) != key_hash("a module", seed=2)


def test_splits_get_their_share_of_the_text() -> None:
    sizes = split_sizes([100] * 1000)
    assert sizes == {"train": 80_000, "valid": 10_000, "test": 10_000}


@given(st.lists(st.integers(1, 10_000), min_size=3, max_size=60), st.integers(0, 9))
def test_no_split_is_empty_from_three_documents_up(lengths: list[int], seed: int) -> None:
    assert all(split_sizes(lengths, seed=seed).values())


def test_fewer_than_three_documents_are_all_for_training() -> None:
    assert split_sizes([5, 5]) == {"train": 10, "valid": 0, "test": 0}


def test_beyond_its_bound_a_plan_holds_no_more_keys_and_keeps_the_fractions() -> None:
    sizes = split_sizes([1] * 120_000)
    assert abs(sizes["valid"] - 12_000) < 600
    assert abs(sizes["test"] - 12_000) < 600


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_stretches_share_no_text_and_lose_none(text: str, max_chars: int) -> None:
    pieces = list(stretches(text, max_chars=max_chars))
    assert "".join(pieces) == text
    assert all(len(piece) <= max_chars for piece in pieces)


def test_stretches_end_between_paragraphs() -> None:
    text = "one two\nthree\n\nfour five six"
    assert list(stretches(text, max_chars=20)) == ["one two\nthree\n\n", "four five six"]
