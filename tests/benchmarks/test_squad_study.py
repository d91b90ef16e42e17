"""The two ways to SQuAD, on rows made by hand and on questions made of real text."""

import os

import pytest

from benchmarks import squad
from evaluators.downstream.reading import read_task
from orchestrator.store import RunStore
from supernet.errors import InvalidInput


def _row(name, seed, exact, f1):
    return {
        **{"name": name, "seed": seed, "steps": 9, "error": None, "headline": f1},
        **{"model": "m", "model_digest": "d", "task": "squad", "pretrained": True},
        **{"learning_rate": 5e-4, "epochs": 4.0},
        "scores": {"exact_match": exact, "f1": f1},
    }


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    """Stands for `finetune`: the folder's rows are there; returns what the test says."""
    RunStore(tmp_path).row_writer("finetune").write(
        [_row("c", 2, 0.15, 0.3), _row("a", 0, 0.05, 0.1), _row("b", 1, 0.1, 0.2)]
    )
    asked = []
    results = [{"names": ["a", "b", "c"]}]

    def finetune(model, tasks, *, data, out, settings):
        asked.append((model, tuple(tasks), data, settings))
        return {"results": results}

    monkeypatch.setattr(squad, "finetune", finetune)
    return asked, results


def test_scores_are_percentages_in_the_order_of_seeds(tuned, tmp_path):
    asked, _ = tuned
    cell = squad.tune("after_clozes", "m", "data", tmp_path, quick=False)
    ((model, tasks, data, recipe),) = asked
    assert (model, tasks, data) == ("m", ("squad",), "data")
    assert (recipe.epochs, recipe.seeds, recipe.max_steps) == ((4.0,), 3, None)
    assert (cell["seeds"], cell["steps"]) == (3, 9)
    assert cell["f1"]["values"] == pytest.approx([10, 20, 30])
    assert cell["f1"]["mean"] == pytest.approx(20)
    half = 4.3027 * 10 / 3**0.5  # Student's t of two degrees of freedom
    assert cell["f1"]["interval"] == pytest.approx([20 - half, 20 + half], abs=1e-2)
    assert cell["exact_match"]["mean"] == pytest.approx(10)


def test_rows_of_another_model_are_refused(tuned, tmp_path):
    _, results = tuned
    results.append({"names": ["d"]})
    with pytest.raises(InvalidInput, match="--work"):
        squad.tune("at_once", "m", "data", tmp_path, quick=False)


@pytest.mark.skipif("MAGIC_NAS_DATA" not in os.environ, reason="MAGIC_NAS_DATA is not set")
def test_clozes_are_of_the_training_text_alone_and_read_as_squad(tmp_path):
    count = squad.make_clozes(tmp_path, quick=True)
    made = read_task(squad.SQUAD, str(tmp_path))
    real = read_task(squad.SQUAD, os.environ["MAGIC_NAS_DATA"])
    assert len(made.train) == count > 1000
    assert made.dev == real.dev
    text = {" ".join(question.context.split()) for question in real.train}
    articles = [question for question in made.train if question.title != "books"]
    assert all(any(q.context in context for context in text) for q in articles[:300:10])
    dev = {" ".join(question.context.split()) for question in real.dev["dev"]}
    assert not any(q.context in context for q in made.train[::50] for context in dev)
