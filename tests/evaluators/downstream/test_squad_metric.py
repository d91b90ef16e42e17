"""Exact match and F1 on cases worked out by hand from the official scripts' definitions."""

from pathlib import Path

import pytest

from evaluators.downstream.squad import Answer, Question, read_questions
from evaluators.downstream.squad_metric import (
    exact_match,
    f1,
    normalise,
    score_squad,
    trivial_squad,
)
from evaluators.downstream.tasks import TASKS
from supernet.errors import InvalidInput

SQUAD, SQUAD2 = TASKS["squad"], TASKS["squad2"]


def question(*texts: str, id: str = "q", context: str = "c", asked: str = "?") -> Question:
    found = tuple(Answer(text, 0) for text in texts)
    return Question(id, "t", asked, context, found, not texts)


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Cat's\tMeow!", "cats meow"),
        ("an apple a day", "apple day"),
        ("theatre Anna", "theatre anna"),
        ("a-the b", "athe b"),  # punctuation goes first, so words join
        ("the, an.", ""),
        ("ÉPINAL – the “town”", "épinal – “town”"),  # only ASCII punctuation goes
        ("$1,000.50", "100050"),
        ("na\u00efve\u00a0the\u2003x", "na\u00efve x"),
    ],
)
def test_texts_are_normalised_as_by_the_scripts(text: str, normalised: str) -> None:
    assert normalise(text) == normalised


@pytest.mark.parametrize("task", ["squad", "squad2"])
def test_the_best_of_the_answers_counts(task: str) -> None:
    asked = question("the big red dog", "Rex", "a dog")
    assert (exact_match(task, "Dog.", asked), f1(task, "Dog.", asked)) == (1.0, 1.0)
    assert (exact_match(task, "red dog Rex", asked)) == 0.0
    assert f1(task, "red dog Rex", asked) == pytest.approx(2 / 3)  # 2 of 3 words, 2 of 3 wanted
    assert f1(task, "dog dog", question("dog cat dog")) == pytest.approx(2 * 1 * (2 / 3) / (5 / 3))
    assert f1(task, "nothing shared", asked) == 0.0
    assert (exact_match(task, "", asked), f1(task, "", asked)) == (0.0, 0.0)


def test_texts_of_which_nothing_is_left_count_as_each_script_has_it() -> None:
    asked = question("The")
    assert (exact_match("squad", "a", asked), f1("squad", "a", asked)) == (1.0, 0.0)
    assert (exact_match("squad2", "a", asked), f1("squad2", "a", asked)) == (1.0, 1.0)
    both = question("The", "Rex")  # squad2 leaves out "The"
    assert (exact_match("squad2", "", both), f1("squad2", "", both)) == (0.0, 0.0)
    assert exact_match("squad", "", both) == 1.0


def test_questions_without_an_answer_want_none() -> None:
    questions = [question("Rex", id="a"), question(id="b"), question(id="c")]
    scores = score_squad(SQUAD2, questions, {"a": "Rex the dog", "b": "", "c": "dog", "d": "x"})
    assert scores == {
        "exact_match": pytest.approx(1 / 3),
        "f1": pytest.approx((2 / 3 + 1 + 0) / 3),
        "has_answer_exact_match": 0.0,
        "has_answer_f1": pytest.approx(2 / 3),
        "no_answer_exact_match": 0.5,
        "no_answer_f1": 0.5,
    }
    assert score_squad(SQUAD, questions[:1], {"a": "Rex"}) == {"exact_match": 1.0, "f1": 1.0}
    assert "no_answer_f1" not in score_squad(SQUAD2, questions[:1], {"a": "Rex"})


def test_missing_predictions_and_other_tasks_are_refused() -> None:
    with pytest.raises(InvalidInput, match="1 of 2 have none, the first is 'b'"):
        score_squad(SQUAD, [question("x", id="a"), question("x", id="b")], {"a": "x"})
    with pytest.raises(InvalidInput, match="0 of 0 have none"):
        score_squad(SQUAD, [], {})
    with pytest.raises(InvalidInput, match="cola is scored by"):
        score_squad(TASKS["cola"], [question("x")], {"q": "x"})


def test_the_trivial_baseline_takes_its_rule_from_train() -> None:
    context = "Rex barked. Then he slept near Anna. The end."
    first = question("Rex barked", context=context)
    alike = question("Then he slept near Anna", context=context, asked="Near whom he slept?")
    found = trivial_squad(SQUAD, [first], [first])
    assert (found.rule, found.scores) == ("first 2 words", {"exact_match": 1.0, "f1": 1.0})
    found = trivial_squad(SQUAD, [alike], [first])
    assert found.rule == "sentence with most of the question's words"
    assert found.scores["f1"] == 1.0  # its question shares no word, so the first sentence
    found = trivial_squad(SQUAD2, [question(context=context)], [question(context=context)])
    assert (found.rule, found.scores["no_answer_f1"]) == ("no answer", 1.0)


def test_the_trivial_baseline_of_real_questions_is_low(data_folder: Path) -> None:
    train, dev = (read_questions(SQUAD, data_folder, split) for split in ("train", "dev"))
    assert 0.05 < trivial_squad(SQUAD, train, dev).scores["f1"] < 0.25
    train, dev = (read_questions(SQUAD2, data_folder, split) for split in ("train", "dev"))
    found = trivial_squad(SQUAD2, train, dev)
    assert (found.rule, found.scores["f1"]) == ("no answer", pytest.approx(225 / 457))
