"""Tasks by name."""

import pytest

from evaluators.downstream.tasks import TASKS, task_named
from supernet.errors import InvalidInput


def test_a_task_has_its_outputs_splits_and_leaderboard_files() -> None:
    assert [(name, task.num_labels) for name, task in TASKS.items()] == [
        ("cola", 2),
        ("sst2", 2),
        ("mrpc", 2),
        ("stsb", 1),
        ("qqp", 2),
        ("mnli", 3),
        ("qnli", 2),
        ("rte", 2),
        ("squad", 2),
        ("squad2", 2),
    ]
    assert task_named("mnli").dev_splits == ("dev", "dev_mm")
    assert task_named("squad").splits == ("train", "dev")
    files = [name for task in TASKS.values() for _, name in task.submissions]
    assert files == [
        "CoLA.tsv",
        "SST-2.tsv",
        "MRPC.tsv",
        "STS-B.tsv",
        "QQP.tsv",
        "MNLI-m.tsv",
        "MNLI-mm.tsv",
        "QNLI.tsv",
        "RTE.tsv",
    ]


@pytest.mark.parametrize(("name", "near"), [("SST-2", "sst2"), ("squad_v2", "squad2")])
def test_an_unknown_task_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InvalidInput, match=f"did you mean '{near}'"):
        task_named(name)
