"""SQuAD's JSON becomes questions; what is wrong with it is said with its place."""

import copy
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluators.downstream.squad import Answer, Question, read_questions, read_squad
from evaluators.downstream.tasks import TASKS
from supernet.errors import InvalidInput

SQUAD, SQUAD2 = TASKS["squad"], TASKS["squad2"]
CONTENT: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Rain",
            "paragraphs": [
                {
                    "context": "It rained in Épinal.",
                    "qas": [
                        {
                            "id": "a",
                            "question": "Where?",
                            "answers": [{"text": "Épinal", "answer_start": 13}],
                        },
                        {"id": "b", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_file_becomes_questions(tmp_path: Path) -> None:
    assert read_squad(SQUAD2, write(tmp_path / "dev.json", CONTENT)) == [
        Question("a", "Rain", "Where?", "It rained in Épinal.", (Answer("Épinal", 13),), False),
        Question("b", "Rain", "Why?", "It rained in Épinal.", (), True),
    ]


def test_real_files_load_whole(data_folder: Path) -> None:
    for split, count in (("train", 7938), ("dev", 1190)):
        assert len(read_questions(SQUAD, data_folder, split)) == count
    path = data_folder / "squad" / "squad2_dev_5articles.json"
    questions = read_squad(SQUAD2, path)
    assert (len(questions), sum(question.is_impossible for question in questions)) == (1407, 702)
    train, dev = (read_questions(SQUAD2, data_folder / "squad", name) for name in ("train", "dev"))
    assert (len(train), len(dev)) == (950, 457)
    assert not {question.context for question in train} & {question.context for question in dev}
    with pytest.raises(InvalidInput, match="SQuAD 1.1 have answers.*task squad2 takes such"):
        read_squad(SQUAD, path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("data",), None, r"wants data, but .*dev.json has there only \['version'\]"),
        (
            ("data", 0, "paragraphs"),
            {},
            r"data\[0\].paragraphs must be of type list, but .* is dict",
        ),
        (("data", 0, "paragraphs", 0, "context"), None, r"wants data\[0\].paragraphs\[0\].context"),
        (("data", 0, "paragraphs", 0, "context"), " ", "must have text, but one is empty"),
        (
            ("data", 0, "paragraphs", 0, "qas", 1, "answers"),
            None,
            r"wants data\[0\].paragraphs\[0\].qas\[1\].answers, but .* \['id', 'is_impossible'",
        ),
        (("data", 0, "paragraphs", 0, "qas", 0), 7, r"qas\[0\].answers, but .* only int"),
        (("data", 0, "paragraphs", 0, "qas", 1, "id"), "a", "unique, .* remove question 'a'"),
        (("data", 0, "paragraphs", 0, "qas", 0, "answers"), [], "one has 0 answers and"),
        (("data", 0, "paragraphs", 0, "qas", 1, "is_impossible"), False, "question 'b'"),
        (
            ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0, "answer_start"),
            12,
            "'Épinal' is not at 12, where ' Épina' stands; mend or remove question 'a'",
        ),
        (
            ("data", 0, "paragraphs", 0, "qas", 0, "answers", 0, "answer_start"),
            "13",
            r"answers\[0\].answer_start must be of type int, but in .* it is str",
        ),
        (("data",), [], "must have questions, but .* has none"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(
    place: tuple[Any, ...], value: Any, said: str, tmp_path: Path
) -> None:
    content = copy.deepcopy(CONTENT)
    part = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    if value is None:
        del part[place[-1]]
    with pytest.raises(InvalidInput, match=said):
        read_squad(SQUAD2, write(tmp_path / "dev.json", content))


def test_what_is_no_json_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"data": [')
    (tmp_path / "latin.json").write_bytes(b'{"data": "\xe9"}')
    for name in ("half.json", "latin.json"):
        with pytest.raises(InvalidInput, match="JSON in UTF-8, but .* is not"):
            read_squad(SQUAD, tmp_path / name)
    with pytest.raises(InvalidInput, match=r"no\.json cannot be read: No such file"):
        read_squad(SQUAD, tmp_path / "no.json")
    with pytest.raises(InvalidInput, match=r"train-v2\.0\.json and dev-v2\.0\.json.*latin\.json"):
        read_questions(SQUAD2, tmp_path, "dev")
    with pytest.raises(InvalidInput, match="got squad2 and 'test'"):
        read_questions(SQUAD2, tmp_path, "test")


def test_original_files_go_before_others_and_are_not_mixed(tmp_path: Path) -> None:
    write(tmp_path / "dev-v2.0.json", CONTENT)
    write(tmp_path / "squad2_dev_5articles.json", CONTENT)
    assert len(read_questions(SQUAD2, tmp_path, "dev")) == 2
    with pytest.raises(InvalidInput, match=r"train split of squad2 must be in .*train-v2\.0\.json"):
        read_questions(SQUAD2, tmp_path, "train")


def test_the_hub_s_table_gives_the_same_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    questions = read_squad(SQUAD2, write(tmp_path / "dev.json", CONTENT))
    columns = {
        "id": [question.id for question in questions],
        "title": [question.title for question in questions],
        "context": [question.context for question in questions],
        "question": [question.question for question in questions],
        "answers": [{"text": ["Épinal"], "answer_start": [13]}, {"text": [], "answer_start": []}],
    }
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "hub" / "validation-00000-of-00001.parquet")
    assert read_questions(SQUAD2, f"hub:{tmp_path / 'hub'}", "dev") == questions
    with pytest.raises(InvalidInput, match="SQuAD 1.1 have answers"):
        read_questions(SQUAD, f"hub:{tmp_path / 'hub'}", "dev")
