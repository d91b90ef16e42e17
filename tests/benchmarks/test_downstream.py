"""The comparison of fine-tuned models, on rows made by hand."""

from types import SimpleNamespace

import pandas as pd
import pytest

from benchmarks import downstream
from benchmarks.downstream import (
    BASELINES,
    SAME,
    TASKS,
    _print,
    architecture_config,
    baseline_config,
    compare,
    found_config,
    settings,
    tune,
)
from orchestrator.limits import Limits
from orchestrator.store import RunStore
from supernet.errors import TrainingDiverged
from supernet.settings import OptimiserSettings
from tests.benchmarks.costs import cost_model

SEEDS = range(5)
NOISE = (0.01, -0.01, 0.0, 0.01, -0.01)
T = 2.776
"""Student's, of four degrees of freedom, at 95 %."""
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
        "trivial": 0.5,
        "learning_rate": 2e-4,
        "steps": 9,
    }


@pytest.fixture
def frame():
    """Found is by seed 1 to 3 points over RoBERTa, and 0 to 4 over ELECTRA, on each task."""
    rows = []
    for task in TASKS:
        for seed in SEEDS:
            rows.append(_row("found", task, seed, 0.80 + seed / 100))
            for name in BASELINES:
                score = 0.80 if "electra" in name else 0.78 + seed / 100 + NOISE[seed]
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
    half = T * 1 / 5**0.5  # deviation of 1, 3, 2, 1, 3
    assert over_roberta["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert over_electra["estimate"] == pytest.approx(2)
    half = T * 1.5811 / 5**0.5  # deviation of 0 to 4
    assert over_electra["interval"] == pytest.approx([2 - half, 2 + half], abs=1e-3)
    assert found["over_random_weights_sst2"]["estimate"] == pytest.approx(12)


def test_a_seed_that_diverged_is_left_out_of_the_pairs(frame):
    diverged = (frame["model"] == "roberta") & (frame["task"] == "rte") & (frame["seed"] == 4)
    frame.loc[diverged, ["headline", "error"]] = [float("nan"), "not finite"]
    found = compare(frame, LEARNT)["over_roberta"]
    assert (found["rte"]["seeds"], found["cola"]["seeds"], found["mean"]["seeds"]) == (4, 5, 4)
    assert found["mean"]["estimate"] == pytest.approx(7 / 4)


def test_a_cell_says_what_is_trivial_and_how_many_seeds_are_no_better(frame, capsys):
    trivial = (frame["model"] == "found") & (frame["task"] == "rte") & frame["seed"].isin([1, 2])
    frame.loc[trivial, "headline"] = 0.5
    found = compare(frame, LEARNT)
    cell = found["scores"]["found"]["rte"]
    assert (cell["trivial"], cell["at_trivial"], cell["median"]) == (50, 2, pytest.approx(80))
    assert (cell["learning_rate"], cell["steps"]) == (2e-4, 9)
    assert found["scores"]["found"]["cola"]["at_trivial"] == 0
    _print(found)
    assert "*2" in capsys.readouterr().out


def test_seeds_that_all_agree_have_no_interval(frame):
    frame.loc[frame["task"] == "rte", "headline"] = 0.5
    cell = compare(frame, LEARNT)["over_roberta"]["rte"]
    assert (cell["estimate"], cell["interval"], cell["seeds"]) == (0, None, 5)


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
    assert "electra did not learn in pre-training" in capsys.readouterr().out


def test_a_quick_run_compares_what_has_not_learnt_and_says_so(frame, capsys):
    found = compare(frame, LEARNT | {"roberta": {**MASKED, "loss_nats": 6.4}}, quick=True)
    assert not found["valid"]["roberta"] and found["over_roberta"]["mean"]["seeds"] == 5
    _print(found)
    assert "roberta did not learn in pre-training: not a valid" in capsys.readouterr().out


def test_rows_of_other_models_and_recipes_are_left_out_and_divergence_is_a_result(
    monkeypatch, tmp_path, capsys
):
    digests = {"a@best": "d1", "b@child": "d2"}
    store = RunStore(tmp_path / "glue")
    recipe = {key: getattr(settings(quick=True), key) for key in SAME}
    common = {**recipe, "epochs": 3.0, "stand_in": "", "start": None, "teacher": None, "data": "x"}
    common |= {"distil_weight": 0.0, "distil_temperature": 2.0, "learning_rate": 3e-4}

    def row(name, model, task, **changes):
        shown = _row("", task, 0, 0.5)
        del shown["chosen"]
        known = {"name": name, "model": model, "model_digest": digests.get(model, "d3")}
        return {
            **shown,
            **common,
            **known,
            "pretrained": True,
            "scores": {"accuracy": 0.5},
        } | changes

    kept = [
        row("kept", "a@best", "cola"),
        row("random", "a@best", "sst2", pretrained=False),
        row("gone", "b@child", "rte", error="not finite", headline=None),
    ]
    others = [
        row("model", "c@best", "cola"),
        row("steps", "a@best", "cola", max_steps=999),
        row("rate", "a@best", "cola", learning_rate=1.0),
        row("mean", "a@best", "cola", pooling="mean"),
        row("mnli", "a@best", "rte", start="finetuned/mnli/x"),
        row("taught", "a@best", "cola", teacher="t"),
    ]
    store.row_writer("finetune").write([*kept, *others])
    store.row_writer("finetune_choice").write([{"names": [found["name"]]} for found in kept])
    asked = []

    def tuned(model, tasks, *, settings, **_):
        asked.append((model, len(tasks), settings.pretrained))
        if model == "b@child":
            raise TrainingDiverged("rte diverged with every seed")

    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    monkeypatch.setattr(downstream, "finetune", tuned)
    source = lambda store, model: SimpleNamespace(digest=digests[model])  # noqa: E731
    monkeypatch.setattr(downstream, "model_source", source)
    frame = tune(tmp_path, {"found": "a@best", "roberta": "b@child"}, quick=True)
    assert asked == [("a@best", 7, True), ("b@child", 7, True), ("a@best", 1, False)]
    said = capsys.readouterr().out
    assert "diverged with every seed" in said and "6 rows of" in said
    assert list(frame["model"]) == ["found", "found (random weights)", "roberta"]
    assert frame["chosen"].all() and list(frame["task"]) == ["cola", "sst2", "rte"]
    frame.to_parquet(tmp_path / "rows.parquet")


def test_relative_baselines_know_the_space_s_distances_generator_included(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    reach = found_config(quick=False).space.candidates["attention"]["relative_reach"]
    one, other = (baseline_config(name, quick=False) for name in ("electra", "electra_relative"))
    assert one.pretraining.generator_relative_reach == 0
    assert other.pretraining.generator_relative_reach == reach
    assert other.space.candidates["attention"]["relative_reach"] == reach
    assert one.seed == other.seed == found_config(quick=False).seed
    assert one.space.dropout == other.space.dropout == found_config(quick=False).space.dropout


def test_the_baselines_are_trained_as_the_best_child_is(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    found = found_config(quick=False)
    alone = architecture_config("attention-conv7", quick=False)
    for config in (*(baseline_config(name, quick=False) for name in BASELINES), alone):
        assert config.data == found.data
        for setting in OptimiserSettings.model_fields:
            assert getattr(config.train, setting) == getattr(found.retrain, setting), setting


def test_the_search_is_limited_to_the_size_of_the_baselines(monkeypatch, tmp_path):
    monkeypatch.setenv("MAGIC_NAS_DATA", str(tmp_path))
    limits = Limits.parse(found_config(quick=False).search.limits)
    for name in BASELINES:
        config = baseline_config(name, quick=False)
        costs = cost_model(config)
        size = costs.cost(costs.cheapest("num_params")).num_params
        for bound in limits.bounds:
            assert bound.value == pytest.approx(size, rel=0.02)
