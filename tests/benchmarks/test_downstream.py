"""The comparison of fine-tuned models, on rows made by hand."""

import pandas as pd
import pytest

from benchmarks.downstream import (
    BASELINES,
    TASKS,
    _print,
    baseline_config,
    compare,
    found_config,
)
from orchestrator.limits import Limits
from supernet.cost import CostModel
from supernet.model import TextShape
from supernet.settings import OptimiserSettings

SEEDS = range(5)
MASKED = {"loss_nats": 5.5, "unigram_nats": 6.5}
REPLACED = {**MASKED, "replaced_loss_nats": 0.30, "replaced_entropy_nats": 0.39}
LEARNT = {
    "found": MASKED,
    **{name: REPLACED if "electra" in name else MASKED for name in BASELINES},
}


def _row(model, task, seed, headline, *, chosen=True):
    return {
        "model": model,
        "task": task,
        "seed": seed,
        "chosen": chosen,
        "headline": headline,
        "error": None,
        "num_params": 100,
    }


@pytest.fixture
def frame():
    """Found is 2 points over RoBERTa, and by seed 0 to 4 points over ELECTRA, on each task."""
    rows = []
    for task in TASKS:
        for seed in SEEDS:
            rows.append(_row("found", task, seed, 0.80 + seed / 100))
            for name in BASELINES:
                score = 0.80 if "electra" in name else 0.78 + seed / 100
                rows.append(_row(name, task, seed, score))
        rows.append(_row("found", task, 0, 0.99, chosen=False))
    rows += [_row("found (random weights)", "sst2", seed, 0.7) for seed in SEEDS]
    return pd.DataFrame(rows)


def test_differences_are_paired_by_seed_at_the_chosen_recipe(frame):
    found = compare(frame, LEARNT)
    assert all(found["valid"].values())
    assert found["mean"]["found"]["estimate"] == pytest.approx(82)
    over_roberta, over_electra = found["over_roberta"]["mean"], found["over_electra"]["mean"]
    assert over_roberta["estimate"] == pytest.approx(2)
    assert over_roberta["interval"] == pytest.approx([2, 2])
    assert over_electra["estimate"] == pytest.approx(2)
    half = 2.776 * 1.5811 / 5**0.5  # t of 4 degrees of freedom, deviation of 0 to 4
    assert over_electra["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert found["over_random_weights_sst2"]["estimate"] == pytest.approx(12)


def test_a_seed_that_diverged_is_left_out_of_the_pairs(frame):
    diverged = (frame["model"] == "roberta") & (frame["task"] == "rte") & (frame["seed"] == 4)
    frame.loc[diverged, ["headline", "error"]] = [float("nan"), "not finite"]
    found = compare(frame, LEARNT)["over_roberta"]
    assert (found["rte"]["seeds"], found["cola"]["seeds"], found["mean"]["seeds"]) == (4, 5, 4)
    assert found["mean"]["estimate"] == pytest.approx(2)


def test_a_task_that_diverged_with_every_seed_has_no_figure(frame, capsys):
    frame.loc[frame["task"] == "rte", ["headline", "error"]] = [float("nan"), "not finite"]
    found = compare(frame, LEARNT)
    for cell in (found["over_roberta"]["rte"], found["mean"]["found"]):
        assert cell == {"estimate": None, "interval": None, "seeds": 0}
    _print(found)
    assert "found over roberta            rte    –" in capsys.readouterr().out


@pytest.mark.parametrize("worse", [{"loss_nats": 6.1}, {"replaced_loss_nats": 0.389}])
def test_nothing_is_compared_with_a_baseline_that_did_not_learn(frame, capsys, worse):
    without = frame[frame["model"] != "electra"]
    found = compare(without, LEARNT | {"electra": REPLACED | worse})
    assert [name for name, valid in found["valid"].items() if not valid] == ["electra"]
    assert "over_electra" not in found and "electra" not in found["mean"]
    _print(found)
    assert "Nothing is compared with electra" in capsys.readouterr().out


def test_the_baselines_are_trained_as_the_best_child_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    found = found_config(quick=False)
    for name in BASELINES:
        baseline = baseline_config(name, quick=False)
        assert baseline.data == found.data
        for setting in OptimiserSettings.model_fields:
            assert getattr(baseline.train, setting) == getattr(found.retrain, setting), setting


def test_the_search_is_limited_to_the_size_of_the_baselines(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    limits = Limits.parse(found_config(quick=False).search.limits)
    for name in BASELINES:
        config = baseline_config(name, quick=False)
        shape = TextShape.of(
            config.space,
            vocab_size=config.data.vocab_size,
            max_length=config.data.sequence_length,
            pad_id=0,
            pretraining=config.pretraining,
        )
        cost_model = CostModel(config.space.build(), shape)
        size = cost_model.cost(cost_model.cheapest("num_params")).num_params
        for bound in limits.bounds:
            assert bound.value == pytest.approx(size, rel=0.02)
