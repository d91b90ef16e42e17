"""Pre-trained against random weights, on rows made by hand."""

import pytest

from benchmarks import sst2
from orchestrator.store import RunStore
from supernet.errors import InvalidInput

PRETRAINED = {0: 0.82, 1: 0.83, 2: 0.84}
RANDOM = {0: 0.81, 1: 0.81, 2: 0.81}


def _row(name, seed, headline, *, pretrained):
    return {
        **{"name": name, "seed": seed, "steps": 9, "error": None, "headline": headline},
        **{"model": "m", "model_digest": "d", "task": "sst2", "pretrained": pretrained},
        **{"learning_rate": 5e-4 if pretrained else 2e-4, "epochs": 5.0},
        "scores": {"accuracy": headline},
    }


@pytest.fixture
def study(monkeypatch, tmp_path):
    """Stands for `finetune`: rows are there, one of a rate that was not chosen among them."""
    arms = (("p", PRETRAINED, True), ("r", RANDOM, False))
    rows = [
        _row(f"{letter}{seed}", seed, headline, pretrained=known)
        for letter, headlines, known in arms
        for seed, headline in reversed(headlines.items())
    ]
    other = _row("other", 0, 0.99, pretrained=True)
    RunStore(tmp_path).row_writer("finetune").write([*rows, other])
    results = [
        {"pretrained": known, "names": [f"{letter}{seed}" for seed in (2, 0, 1)]}
        for letter, _, known in arms
    ]
    asked = []

    def finetune(model, tasks, *, data, out, settings):
        asked.append(settings)
        return {"results": results}

    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    monkeypatch.setattr(sst2, "finetune", finetune)
    return asked, results


def test_the_difference_is_paired_by_seed_and_of_chosen_rates_alone(study, tmp_path):
    asked, _ = study
    found = sst2.tune("m", tmp_path, quick=False)
    assert found["pretrained"]["values"] == pytest.approx([82, 83, 84])
    assert found["random_weights"]["values"] == pytest.approx([81, 81, 81])
    assert found["difference"]["values"] == pytest.approx([1, 2, 3])
    half = 4.3027 / 3**0.5  # Student's t of two degrees of freedom, deviation 1
    assert found["difference"]["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert found["pretrained"]["learning_rate"] == 5e-4
    one, other = asked
    assert (one.pretrained, other.pretrained) == (False, True)
    assert one.model_copy(update={"pretrained": True}) == other


def test_rows_of_another_recipe_are_refused(study, tmp_path):
    _, results = study
    results.append(results[0])
    with pytest.raises(InvalidInput, match="--work"):
        sst2.tune("m", tmp_path, quick=False)
