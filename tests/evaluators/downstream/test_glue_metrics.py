"""GLUE's figures on hand-checked cases, the trivial baseline, and the leaderboard's files."""

from pathlib import Path

import pytest

from evaluators.downstream.glue import Example
from evaluators.downstream.metrics import headline, majority, score
from evaluators.downstream.submission import write_submission
from evaluators.downstream.tasks import TASKS
from supernet.errors import InvalidInput

PREDICTED, TRUE = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 true and 1 false positives, 1 each negative


def test_classes_are_scored_as_by_hand() -> None:
    assert score(TASKS["sst2"], PREDICTED, TRUE) == {"accuracy": pytest.approx(3 / 5)}
    assert score(TASKS["cola"], PREDICTED, TRUE) == {"matthews": pytest.approx(1 / 6)}
    scores = score(TASKS["qqp"], PREDICTED, TRUE)
    assert scores == {"f1": pytest.approx(2 / 3), "accuracy": pytest.approx(3 / 5)}
    assert headline(TASKS["qqp"], scores) == pytest.approx((2 / 3 + 3 / 5) / 2)


def test_similarities_are_scored_by_both_correlations() -> None:
    scores = score(TASKS["stsb"], [1.0, 2.0, 9.0], [1.0, 2.0, 3.0])
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(8 / (2 * 38) ** 0.5)
    assert headline(TASKS["stsb"], scores) == pytest.approx((scores["pearson"] + 1) / 2)


def test_undefined_figures_are_zero() -> None:
    assert score(TASKS["stsb"], [2.0, 2.0], [1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}
    assert score(TASKS["cola"], [1, 1, 1], [0, 1, 1]) == {"matthews": 0.0}
    assert score(TASKS["cola"], [1, 1], [1, 1]) == {"matthews": 0.0}
    assert score(TASKS["mrpc"], [0, 0], [0, 0])["f1"] == 0.0


@pytest.mark.parametrize(
    ("name", "predictions", "references", "said"),
    [
        ("rte", [1], [1, 0], "of one length"),
        ("rte", [], [], "at least 1"),
        ("rte", [2, 0], [1, 0], "predictions of rte must be classes from 0 to 1, but number 0 is"),
        ("rte", [0.5, 0], [1, 0], "must be classes"),
        ("stsb", [float("nan"), 1], [1, 0], "predictions of stsb must be finite, but number 0"),
        ("squad", [1], [1], "squad is scored by"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    name: str, predictions: list[float], references: list[float], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        score(TASKS[name], predictions, references)


def examples(*labels: float | None) -> list[Example]:
    return [Example("a", "b", label, idx) for idx, label in enumerate(labels)]


def test_the_trivial_baseline_says_what_train_says_most() -> None:
    rte, stsb = TASKS["rte"], TASKS["stsb"]
    assert majority(rte, examples(1, 0, 1), examples(1, 0, 0, 0)) == {"accuracy": 0.25}
    assert majority(stsb, examples(1.0, 2.0), examples(0.5, 4.0))["pearson"] == 0.0
    with pytest.raises(InvalidInput, match="1 of 2 have none"):
        majority(rte, examples(1, None), examples(1))


def test_a_submission_has_the_leaderboard_s_names_numbers_and_words(tmp_path: Path) -> None:
    paths = [
        write_submission(TASKS["cola"], tmp_path / "new", [1, 0]),
        write_submission(TASKS["stsb"], tmp_path / "new", [-0.1, 2.34567, 7.0]),
        write_submission(TASKS["mnli"], tmp_path / "new", [2]),
        write_submission(TASKS["mnli"], tmp_path / "new", [0], split="test_mm"),
    ]
    assert {path.name: path.read_text() for path in paths} == {
        "CoLA.tsv": "index\tprediction\n0\t1\n1\t0\n",
        "STS-B.tsv": "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n",
        "MNLI-m.tsv": "index\tprediction\n0\tcontradiction\n",
        "MNLI-mm.tsv": "index\tprediction\n0\tentailment\n",
    }


def test_a_submission_with_what_is_no_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="class from 0 to 1, but that of row 1 is 2"):
        write_submission(TASKS["rte"], tmp_path, [0, 2])
    with pytest.raises(InvalidInput, match="got split='test_mm'"):
        write_submission(TASKS["rte"], tmp_path, [0], split="test_mm")
    assert not list(tmp_path.iterdir())
