"""The tokenizer: a WordPiece vocabulary trained on the training split, or one that is named."""

from collections.abc import Iterator
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


def make_tokenizer(settings: DataSettings, texts: Iterator[str]) -> Any:
    """A transformers tokenizer; `texts` are read only if one has to be trained.

    Raises:
        InvalidInput: if the named tokenizer cannot be loaded or lacks a special token.
    """
    if settings.tokenizer is not None:
        return _load(settings.tokenizer)
    return _train(texts, settings)


def _train(texts: Iterator[str], settings: DataSettings) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        limit_alphabet=settings.vocab_size // 4,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = _sentence_marks(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.sequence_length,
        **SPECIAL_TOKENS,
    )


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
    """Token ids of each text, without special tokens."""
    encoded: list[list[int]] = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return encoded
