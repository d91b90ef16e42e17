"""Questions made of plain text: a first fine-tuning on SQuAD where labelled questions are few.

The noisy clozes of Lewis, Denoyer and Riedel ("Unsupervised Question Answering by Cloze
Translation", ACL 2019): an answer is taken out of its sentence, and what stands around it, some
words left out and some moved, follows a question word that goes with the answer. Their answers are
a parser's named entities and noun phrases. Ours are runs of capitalised words, numbers and runs of
words that are not function words, which wants no parser: our own decision, as are all numbers here.
"""

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["name", "number", "phrase"]

PASSAGE_WORDS = 65
"""So that a passage and its question fit into one window of 128 tokens."""
LEAST_WORDS = 15
SENTENCES, STEP = 4, 2
"""A passage of an article has four sentences; the next one begins two later."""
LEAST_BOOK_WORDS = 30
ANSWER_WORDS = 6
DROPPED, MOVED = 0.2, 3.0
"""Share of the words left out; how far a word moves at most, in words."""
QUESTION_WORDS: dict[Kind, tuple[str, ...]] = {
    "number": ("when", "how many", "what year", "how much"),
    "name": ("who", "what", "where", "which"),
    "phrase": ("what", "how", "why", "what"),
}
_FUNCTION_WORDS = (
    "a an the of in on at to for by with from and or but is are was were be been being it its he "
    "she they them his her their this that these those as which who whom whose what when where how "
    "not no so if then than there here have has had do does did will would can could may might "
    "shall should into over under after before between during through about against also very more "
    "most such only other some any all each one i you we us me my your our him upon"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())
_CLOSES = re.compile(r"[,.;:)]$")


@dataclass(frozen=True)
class Cloze:
    """A question about a passage, its answer, and the character at which the answer begins."""

    question: str
    answer: str
    start: int


@dataclass(frozen=True)
class _Candidate:
    """Words `first` to `end` (exclusive) of a sentence that begins at character `start`."""

    start: int
    sentence: str
    first: int
    end: int
    kind: Kind


def clozes(passage: str, most: int, rng: random.Random) -> list[Cloze]:
    """At most so many questions about a passage, in random order."""
    candidates = list(_candidates(passage, rng))
    rng.shuffle(candidates)
    found: list[Cloze] = []
    for candidate in candidates:
        if rng.random() > (0.5 if candidate.kind == "phrase" else 1):
            continue
        if (cloze := _cloze(candidate, rng)) is not None:
            found.append(cloze)
        if len(found) == most:
            break
    return found


def passages_of(article: Sequence[str]) -> list[str]:
    """Overlapping passages of an article's paragraphs."""
    found = []
    for paragraph in article:
        sentences = _sentences(paragraph)
        for first in range(0, len(sentences), STEP):
            words = " ".join(sentences[first : first + SENTENCES]).split()
            if len(words) >= LEAST_WORDS:
                found.append(" ".join(words[:PASSAGE_WORDS]))
    return found


def write_clozes(
    file: Path,
    articles: Mapping[str, Sequence[str]],
    book_lines: Sequence[str],
    *,
    per_passage: int,
    book_passages: int,
    per_book_passage: int,
    seed: int,
) -> int:
    """Write questions in SQuAD 1.1's format; returns how many.

    Args:
        file: what is written.
        articles: the paragraphs of each, by title.
        book_lines: paragraphs of running text, of which passages are drawn.
        per_passage: the most questions about a passage of an article.
        book_passages: how many passages of running text.
        per_book_passage: the most questions about one of those.
        seed: of what is random.
    """
    rng, ids = random.Random(seed), itertools.count()
    data = [
        _article(title, passages_of(article), per_passage, rng, ids)
        for title, article in articles.items()
    ]
    long = [line.strip() for line in book_lines if len(line.split()) >= LEAST_BOOK_WORDS]
    rng.shuffle(long)
    drawn = [" ".join(line.split()[:PASSAGE_WORDS]) for line in long[:book_passages]]
    data.append(_article("books", drawn, per_book_passage, rng, ids))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"version": "1.1", "data": data}))
    return next(ids)


def _article(
    title: str, passages: Sequence[str], most: int, rng: random.Random, ids: Iterator[int]
) -> dict[str, object]:
    asked = [(passage, clozes(passage, most, rng)) for passage in passages]
    paragraphs = [
        {
            "context": passage,
            "qas": [
                {
                    "id": f"c{next(ids)}",
                    "question": cloze.question,
                    "answers": [{"text": cloze.answer, "answer_start": cloze.start}],
                }
                for cloze in found
            ],
        }
        for passage, found in asked
        if found
    ]
    return {"title": title, "paragraphs": paragraphs}


def _sentences(text: str) -> list[str]:
    found = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text)
    return [sentence for sentence in found if sentence.strip()]


def _candidates(passage: str, rng: random.Random) -> Iterator[_Candidate]:
    start = 0
    for sentence in _sentences(passage):
        start = passage.index(sentence, start)
        words = sentence.split()
        if len(words) >= ANSWER_WORDS:
            for first, end, kind in _runs(words, rng):
                if end - first <= ANSWER_WORDS:
                    yield _Candidate(start, sentence, first, end, kind)


def _runs(words: Sequence[str], rng: random.Random) -> Iterator[tuple[int, int, Kind]]:
    """Words that can be an answer: first, end (exclusive) and kind."""
    bare = [re.sub(r"^\W+|\W+$", "", word) for word in words]
    first = 0
    while first < len(words):
        end = first + 1
        if bare[first][:1].isdigit():
            follows = end < len(words) and bare[end].lower() not in FUNCTION_WORDS
            if follows and not _CLOSES.search(words[first]) and rng.random() < 0.5:
                end += 1  # what is counted
            yield first, end, "number"
        elif bare[first][:1].isupper() and first:
            while end < len(words) and not _CLOSES.search(words[end - 1]) and _is_name(bare, end):
                end += 1
            yield first, end, "name"
        elif bare[first] and bare[first].lower() not in FUNCTION_WORDS:
            while end < len(words) and not _CLOSES.search(words[end - 1]) and _is_plain(bare[end]):
                end += 1
            yield first, end, "phrase"
        first = end


def _is_name(bare: Sequence[str], at: int) -> bool:
    """Whether the word belongs to the name before it, as all of "House of Lords" do."""
    joins = bare[at] in ("of", "the", "de") and at + 1 < len(bare) and bare[at + 1][:1].isupper()
    return bare[at][:1].isupper() or joins


def _is_plain(word: str) -> bool:
    return bool(word) and word.lower() not in FUNCTION_WORDS and not word[:1].isdigit()


def _cloze(candidate: _Candidate, rng: random.Random) -> Cloze | None:
    first, end = candidate.first, candidate.end
    if candidate.kind == "phrase" and first > 0 and rng.random() < 0.4:
        first -= 1  # with the small word before it
    places = [match.span() for match in re.finditer(r"\S+", candidate.sentence)]
    words = [candidate.sentence[begin:close] for begin, close in places]
    around = rng.randint(6, 14)
    low = max(0, first - rng.randint(2, around))
    high = min(len(words), end + around - (first - low))
    text = candidate.sentence[places[first][0] : places[end - 1][1]]
    answer = re.sub(r"^\W+|[,.;:!?\"')(\]]+$", "", text)
    if not answer:
        return None
    rest = [re.sub(r"[,.;:!?\"()]+$", "", word) for word in words[low:first] + words[end:high]]
    asked = rng.choice(QUESTION_WORDS[candidate.kind])
    start = candidate.start + places[first][0] + text.index(answer)
    return Cloze(f"{asked} {' '.join(_noisy(rest, rng))}?", answer, start)


def _noisy(words: Sequence[str], rng: random.Random) -> list[str]:
    kept = [word for word in words if rng.random() >= DROPPED]
    places = [place + rng.uniform(0, MOVED) for place in range(len(kept))]
    return [kept[place] for place in sorted(range(len(kept)), key=places.__getitem__)]
