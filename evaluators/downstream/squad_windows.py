"""Questions as a model's input: the context in windows that overlap, as far as it is long.

T: tokens of a window, its padding not counted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluators.downstream.squad import Question
from supernet.errors import InvalidInput

Ints = npt.NDArray[np.int32]
_CHUNK = 1000


@dataclass(frozen=True, eq=False)
class Window:
    """A question with a stretch of its context, as tokens.

    Attributes:
        question: index into the list of questions.
        input_ids: (T,), with the tokenizer's special tokens, not padded.
        token_type_ids: (T,), None where the tokenizer gives none.
        offsets: (T, 2) first character of each token in the context and the one after its last;
            -1 for tokens that are not of the context.
        cls: position of the token that stands for "no answer in this window".
        start: position of the first token of the answer that most annotators gave, of equals the
            first (our decision; official training sets have one each); `cls` where that answer is
            not wholly in the window, or there is none.
        end: position of its last token, likewise.
    """

    question: int
    input_ids: Ints
    token_type_ids: Ints | None
    offsets: Ints
    cls: int
    start: int
    end: int


def make_windows(
    questions: Sequence[Question],
    tokenizer: Any,
    *,
    max_length: int = 384,
    stride: int = 128,
    max_question_tokens: int = 64,
) -> list[Window]:
    """The windows of all questions, in their order.

    Args:
        questions: as `read_questions` gives them.
        tokenizer: a fast one of `transformers`, for it knows the tokens' characters.
        max_length: tokens of a window, special ones included.
        stride: tokens of the context that a window shares with the one before.
        max_question_tokens: longer questions are cut to this many, as BERT's are.

    Raises:
        InvalidInput: if the tokenizer is not a fast one, or the question and the stride leave no
            room for the context.
    """
    check_windows(
        tokenizer, max_length=max_length, stride=stride, max_question_tokens=max_question_tokens
    )
    windows: list[Window] = []
    for first in range(0, len(questions), _CHUNK):
        chunk = questions[first : first + _CHUNK]
        texts = _cut([question.question for question in chunk], tokenizer, max_question_tokens)
        encoded = tokenizer(
            texts,
            [question.context for question in chunk],
            truncation="only_second",
            max_length=max_length,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=False,
        )
        windows.extend(_windows(encoded, chunk, first, tokenizer.cls_token_id))
    return windows


def check_windows(
    tokenizer: Any, *, max_length: int, stride: int, max_question_tokens: int = 64
) -> None:
    """Refuse what `make_windows` cannot do, before there are questions.

    Raises:
        InvalidInput: as there.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidInput(
            "answers need a fast tokenizer, but this one does not know its tokens' characters; "
            "load it with AutoTokenizer"
        )
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_length - max_question_tokens - special
    if min(max_question_tokens, stride + 1) < 1 or room <= stride:
        raise InvalidInput(
            "max_length - max_question_tokens - special tokens > stride >= 0 must hold, but got "
            f"{max_length} - {max_question_tokens} - {special} and {stride=}; give longer windows, "
            "shorter questions or a smaller stride"
        )


def _cut(texts: list[str], tokenizer: Any, most: int) -> list[str]:
    """The questions without white space around, cut after so many tokens."""
    texts = [text.strip() for text in texts]
    while True:
        offsets = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ends = [(spans[most - 1][1], len(spans) > most) for spans in _padded(offsets, most)]
        if not any(longer for _, longer in ends):
            return texts
        pairs = zip(texts, ends, strict=True)
        texts = [_shorter(text, end) if longer else text for text, (end, longer) in pairs]


def _padded(encoded: Any, most: int) -> Iterator[list[tuple[int, int]]]:
    for spans in encoded["offset_mapping"]:
        yield [*spans, *[(0, 0)] * (most - len(spans))]


def _shorter(text: str, end: int) -> str:
    """Cut at the character; one less where that would change nothing, as within a character."""
    return text[: min(end, len(text) - 1)].rstrip()


def _windows(
    encoded: Any, questions: Sequence[Question], first: int, cls_token_id: int | None
) -> Iterator[Window]:
    types = encoded.get("token_type_ids")
    for i, ids in enumerate(encoded["input_ids"]):
        number = encoded["overflow_to_sample_mapping"][i]
        offsets_T2 = np.array(encoded["offset_mapping"][i], np.int32)
        in_context_T = np.array([part == 1 for part in encoded.sequence_ids(i)])
        offsets_T2[~in_context_T] = -1
        cls = ids.index(cls_token_id) if cls_token_id in ids else 0
        start, end = _label(questions[number], offsets_T2) or (cls, cls)
        yield Window(
            question=first + number,
            input_ids=np.array(ids, np.int32),
            token_type_ids=None if types is None else np.array(types[i], np.int32),
            offsets=offsets_T2,
            cls=cls,
            start=start,
            end=end,
        )


def _label(question: Question, offsets_T2: Ints) -> tuple[int, int] | None:
    """The tokens that the answer touches, if all of it is in the window."""
    if not question.answers:
        return None
    answer = max(question.answers, key=question.answers.count)
    first = answer.start + len(answer.text) - len(answer.text.lstrip())
    after = answer.start + len(answer.text.rstrip())
    starts_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    (context,) = np.nonzero(starts_T >= 0)
    if not len(context) or starts_T[context[0]] > first or ends_T[context[-1]] < after:
        return None
    (touched,) = np.nonzero((starts_T >= 0) & (starts_T < after) & (ends_T > first))
    return (int(touched[0]), int(touched[-1])) if len(touched) else None
