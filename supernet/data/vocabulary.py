"""The tokenizer: a WordPiece vocabulary trained on the training split, or one that is named."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from supernet.errors import InvalidInput
from supernet.settings import DataSettings

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_NEEDED = ("pad_token", "cls_token", "sep_token", "mask_token")


def make_tokenizer(settings: DataSettings, texts: Callable[[], Iterator[str]]) -> Any:
    """A transformers tokenizer; `texts` is called only if a vocabulary has to be trained.

    Raises:
        InvalidInput: if the named tokenizer cannot be loaded or lacks a special token.
    """
    from transformers import PreTrainedTokenizerFast

    if settings.tokenizer is not None:
        return _load(settings.tokenizer)
    special_tokens = list(SPECIAL_TOKENS.values())
    tokenizer = _word_pieces(_train_vocabulary(texts, settings), lowercase=settings.lowercase)
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.post_processor = _sentence_marks(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=settings.sequence_length, **SPECIAL_TOKENS
    )


def _word_pieces(vocabulary: dict[str, int], *, lowercase: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = SPECIAL_TOKENS["unk_token"]
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train_vocabulary(texts: Callable[[], Iterator[str]], settings: DataSettings) -> dict[str, int]:
    """Token to id, the same in every process.

    The trainer numbers continued characters ("##e") in the order of a randomly seeded hash map
    and decides ties by number, so they are given to it beforehand in a fixed order.
    """
    from tokenizers import trainers

    tokenizer = _word_pieces({}, lowercase=settings.lowercase)
    initial, continued = _alphabet(texts(), tokenizer, limit=settings.vocab_size // 4)
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        initial_alphabet=initial,
        limit_alphabet=len(initial),
        special_tokens=[*SPECIAL_TOKENS.values(), *continued],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer=trainer)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return vocabulary


def _alphabet(texts: Iterator[str], tokenizer: Any, *, limit: int) -> tuple[list[str], list[str]]:
    """The most frequent characters, and those of them that occur within words, as "##x"."""
    chunks: Counter[str] = Counter()
    for text in texts:
        chunks.update(tokenizer.normalizer.normalize_str(text).split())
    counts: Counter[str] = Counter()
    within: set[str] = set()
    for chunk, count in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            within.update(word[1:])
            for character in word:
                counts[character] += count
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    kept = sorted(by_frequency[:limit])
    return kept, [f"##{character}" for character in kept if character in within]


def _sentence_marks(tokenizer: Any) -> Any:
    from tokenizers import processors

    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    return processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )


def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the hub's client raises many kinds
        raise InvalidInput(
            f"data.tokenizer must be a tokenizer's folder or hub name, but {name!r} cannot be "
            f"loaded ({type(error).__name__}: {error}); check the name and the network, or leave "
            "it out to train a vocabulary"
        ) from error
    lacking = [token for token in _NEEDED if getattr(tokenizer, token) is None]
    if lacking:
        raise InvalidInput(
            f"a tokenizer needs {list(_NEEDED)}, but {name!r} has no {lacking}; choose one that "
            "was made for masked language modelling, or leave data.tokenizer out"
        )
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a folder that `AutoTokenizer.from_pretrained` loads."""
    tokenizer.save_pretrained(str(folder))


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens: "[MASK]" in a text is text."""
    encoded: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return encoded
