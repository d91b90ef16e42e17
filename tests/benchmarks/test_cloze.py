"""Questions made of plain text."""

import json
import random

import pytest

from benchmarks.cloze import (
    ANSWER_WORDS,
    PASSAGE_WORDS,
    QUESTION_WORDS,
    clozes,
    passages_of,
    write_clozes,
)
from evaluators.downstream.squad import read_squad
from evaluators.downstream.tasks import TASKS

PASSAGE = (
    "The treaty was signed by Maria Theresa of Austria in 1748, after long and bitter talks. "
    "Some 40,000 soldiers (of the northern army) went home before the winter; their commander, "
    "Count Browne, stayed in the House of Lords."
)


def _asked(seeds=range(40)):
    return [cloze for seed in seeds for cloze in clozes(PASSAGE, 20, random.Random(seed))]


def test_every_answer_stands_where_it_says_and_in_no_punctuation():
    for cloze in _asked():
        assert PASSAGE[cloze.start :].startswith(cloze.answer)
        assert cloze.answer[-1] not in ",.;:)"
        assert 1 <= len(cloze.answer.split()) <= ANSWER_WORDS + 1


def test_names_numbers_and_phrases_are_found_whole():
    answers = {cloze.answer for cloze in _asked()}
    assert {"Maria Theresa of Austria", "1748", "House of Lords", "northern army"} <= answers
    assert not {"Maria", "Theresa", "House", "Lords"} & answers


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("1748", "number"), ("House of Lords", "name"), ("northern army", "phrase")],
)
def test_the_question_word_goes_with_the_answer(answer, kind):
    asked = [cloze.question for cloze in _asked() if cloze.answer == answer]
    assert asked
    assert all(question.startswith(QUESTION_WORDS[kind]) for question in asked)


def test_a_question_is_of_its_sentence_without_the_answer():
    first, second = PASSAGE.split(". ")
    for cloze in _asked():
        sentence = first if cloze.start < len(first) else second
        word = next(
            w
            for words in QUESTION_WORDS.values()
            for w in words
            if cloze.question.startswith(w + " ") or cloze.question == w + "?"
        )
        rest = cloze.question.removeprefix(word).rstrip("?").split()
        assert all(part in sentence for part in rest)
        assert cloze.answer not in " ".join(rest)


def test_words_are_left_out_and_moved():
    asked = {c.question for c in _asked() if c.answer == "Maria Theresa of Austria"}
    ordered = "treaty was signed by"
    assert any(ordered not in question for question in asked)
    assert len(asked) > 10


def test_no_more_questions_than_asked_for():
    assert len(clozes(PASSAGE, 2, random.Random(0))) == 2


def test_passages_overlap_and_fit():
    sentences = [f"Sentence number {n} says that the river is wide here." for n in range(8)]
    passages = passages_of([" ".join(sentences), "Too short."])
    assert passages[0].startswith(sentences[0])
    assert passages[1].startswith(sentences[2])
    assert sentences[2] in passages[0]
    assert all(len(passage.split()) <= PASSAGE_WORDS for passage in passages)
    assert not any("Too short" in passage for passage in passages)


def test_the_file_is_squads_and_the_same_for_the_same_seed(tmp_path):
    lines = [
        f"In {1800 + n} the old house of the family Brown was sold again, and " * 5
        for n in range(10)
    ]

    def write(name, seed):
        file = tmp_path / name / "train-v1.1.json"
        count = write_clozes(
            file,
            {"Treaties": [PASSAGE]},
            lines,
            per_passage=5,
            book_passages=3,
            per_book_passage=2,
            seed=seed,
        )
        return file, count

    file, count = write("one", 0)
    questions = read_squad(TASKS["squad"], file)
    assert len(questions) == count
    assert {question.title for question in questions} == {"Treaties", "books"}
    books = [question.context for question in questions if question.title == "books"]
    assert len(set(books)) <= 3
    assert len(books) <= 6
    again, _ = write("again", 0)
    other, _ = write("other", 1)
    assert file.read_text() == again.read_text()
    assert json.loads(file.read_text()) != json.loads(other.read_text())
