"""The trained vocabulary: its size, its case, and special tokens that texts cannot forge."""

from typing import Any

import pytest

from supernet.data.vocabulary import SPECIAL_TOKENS, encode, make_tokenizer
from supernet.settings import DataSettings

TEXTS = ["The [MASK] stands for a word.", "Words stand for things; Ärger and naïveté, too."] * 20


def tokenizer_of(**settings: Any) -> Any:
    return make_tokenizer(DataSettings(vocab_size=160, **settings), lambda: iter(TEXTS))


def test_special_tokens_come_first_and_frame_a_text() -> None:
    tokenizer = tokenizer_of()
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_TOKENS.values())
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert len(tokenizer) <= 160
    ids = tokenizer("the word")["input_ids"]
    assert [ids[0], ids[-1]] == [tokenizer.cls_token_id, tokenizer.sep_token_id]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the word"


def test_a_special_token_in_a_text_is_text() -> None:
    tokenizer = tokenizer_of()
    (ids,) = encode(tokenizer, ["The [MASK] [PAD] ##s"])
    assert not set(ids) & {tokenizer.mask_token_id, tokenizer.pad_token_id}
    assert tokenizer.convert_ids_to_tokens(ids)[1:4] == ["[", "mask", "]"]


@pytest.mark.parametrize(("lowercase", "same"), [(True, True), (False, False)])
def test_case_is_kept_only_if_asked_for(lowercase: bool, same: bool) -> None:
    tokenizer = tokenizer_of(lowercase=lowercase)
    assert (tokenizer.tokenize("THE word") == tokenizer.tokenize("the word")) is same


def test_continued_characters_are_no_special_tokens() -> None:
    tokenizer = tokenizer_of()
    assert "##s" in tokenizer.get_vocab()
    assert len(tokenizer.added_tokens_decoder) == len(SPECIAL_TOKENS)
