"""A whole run whose models learn to tell replaced tokens."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import load_config, load_leaderboard, run
from orchestrator.learnt import check_learnt, not_learnt
from orchestrator.runinfo import read_info
from orchestrator.runs import Run
from orchestrator.store import RunStore
from supernet.checkpoint import latest_checkpoint
from supernet.errors import InvalidInput, SuperNetCollapsed
from supernet.loss import evaluate, generator_figures
from supernet.model import SuperNet
from supernet.space import Architecture

REPLACED = ["pretraining.objective=replaced_tokens", "pretraining.generator_heads=2"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    out = tmp_path_factory.mktemp("replaced") / "run"
    overrides = [*REPLACED, "search.candidates=8", "retrain.controls=0"]
    run(load_config(tiny_config, overrides), out=out, local=True)
    return out


def test_the_rows_of_training_have_both_losses(out: Path) -> None:
    for kind in ("train", "retrain"):
        for row in RunStore(out).rows(kind):
            whole = row["generator_loss_nats"] + 50.0 * row["discriminator_loss_nats"]
            assert row["loss_nats"] == pytest.approx(whole)
    probes = RunStore(out).rows("probe")
    assert probes and all(row["generator_loss_nats"] > row["val_loss_nats"] for row in probes)


def test_children_are_scored_by_what_they_say_of_every_token(out: Path) -> None:
    board = load_leaderboard(out)
    assert len(board) == 8
    assert board["val_loss_nats"].max() < 2 * math.log(2)
    assert board["masked_accuracy"].between(0.5, 1.0).all()


def test_the_results_are_those_of_the_retrained_weights(out: Path) -> None:
    this = Run.open(out)
    best = read_info(this.store)["models"][0]
    child = Architecture.parse(best["architecture"])
    model = SuperNet(this.space.restricted_to(child), this.shape)
    checkpoint = latest_checkpoint(this.store, "retrained/best", optimizer=False)
    assert checkpoint is not None
    model.load_state_dict(dict(checkpoint.weights))
    batches = this.eval_batches("test", sequences=16)
    found = (best["test_loss_nats"], best["masked_accuracy"])
    assert found == pytest.approx(evaluate(model, child, batches))
    figures = generator_figures(model, batches)
    assert {name: best[name] for name in figures} == pytest.approx(figures)
    assert "generator" not in this.store.read_bytes("export/config.json").decode()


def test_the_export_is_the_discriminator(out: Path) -> None:
    from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

    discriminator: Any = AutoModelForPreTraining.from_pretrained(
        out / "export", trust_remote_code=True
    )
    best = read_info(RunStore(out))["models"][0]
    assert sum(tensor.numel() for tensor in discriminator.parameters()) == best["num_params"]
    assert discriminator.config.objective == "replaced_tokens"
    inputs = AutoTokenizer.from_pretrained(out / "export")(
        ["the cat sees a dog", "a"], padding=True, return_tensors="pt"
    )
    labels_BT = torch.zeros_like(inputs["input_ids"])
    labels_BT[0, 1] = 1
    with torch.no_grad():
        found = discriminator(**inputs, labels=labels_BT)
        hidden_BTD = AutoModel.from_pretrained(out / "export", trust_remote_code=True)(
            **inputs
        ).last_hidden_state
        torch.testing.assert_close(found.logits, discriminator.head(hidden_BTD))
    this = Run.open(out)
    child = Architecture.parse(best["architecture"])
    model = SuperNet(this.space.restricted_to(child), this.shape).eval()
    checkpoint = latest_checkpoint(this.store, "retrained/best", optimizer=False)
    assert checkpoint is not None
    model.load_state_dict(dict(checkpoint.weights))
    real_BT = inputs["attention_mask"].bool()
    real_N = real_BT.flatten().nonzero()[:, 0]
    with torch.no_grad():
        two_N2 = model(child, inputs["input_ids"], real_BT, real_N)
    torch.testing.assert_close(found.logits[real_BT], two_N2[:, 1])
    loss = torch.nn.functional.cross_entropy(two_N2, labels_BT[real_BT])
    torch.testing.assert_close(found.loss, loss)
    card = (out / "export" / "README.md").read_text()
    assert "AutoModelForPreTraining" in card and "fill-mask" not in card


def test_the_report_draws_the_childs_loss_and_no_unigrams(out: Path) -> None:
    from orchestrator.run_record import read_run

    record = read_run(RunStore(out))
    assert record.replaced_tokens and record.unigram_nats("test") is None
    rows = RunStore(out).rows("train")
    assert list(record.train["loss_nats"]) == [row["discriminator_loss_nats"] for row in rows]
    assert (out / "report.html").exists()


def test_the_bars_are_for_the_generator_and_for_what_tells_its_tokens(out: Path) -> None:
    info = read_info(RunStore(out))
    models = {model["name"]: model for model in info["models"]}
    reason = info["comparison"]["reason"]
    assert not info["comparison"]["valid"]  # in twenty steps nothing is learnt
    assert f"best's generator ({models['best']['generator_loss_nats']:.3f} nats)" in reason
    blind = [{**model, "generator_loss_nats": 0.1} for model in models.values()]
    reason = not_learnt(blind, info["unigram_nats"]["test"]) or ""
    assert f"best ({models['best']['test_loss_nats']:.4f} nats)" in reason
    assert "cannot tell replaced tokens" in reason
    learnt = [{**model, "test_loss_nats": 0.1} for model in blind]
    assert not_learnt(learnt, info["unigram_nats"]["test"]) is None
    probed = info["supernet"]
    assert probed["generator_loss_nats"] > probed["replaced_entropy_nats"] > 0


def test_a_generator_that_learnt_nothing_is_a_collapse(out: Path) -> None:
    this = Run.open(out)
    train = this.config.train.model_copy(update={"collapsed_within_nats": 100.0})
    strict = Run(this.store, this.config.model_copy(update={"train": train}))
    with pytest.raises(SuperNetCollapsed, match="its generator must end 100.0 nats below"):
        check_learnt(strict)
    assert read_info(this.store)["supernet"]["collapsed"]


@pytest.mark.parametrize("share", [0.97, 0.99])
def test_a_super_net_that_does_not_look_at_tokens_is_a_collapse(
    share: float, out: Path, tmp_path: Path
) -> None:
    shutil.copytree(out, tmp_path / "run")
    for path in (tmp_path / "run" / "rows").glob("probe-*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row |= {"val_loss_nats": share * row["replaced_entropy_nats"]}
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    this = Run.open(tmp_path / "run")
    train = this.config.train.model_copy(update={"collapsed_within_nats": -9.0})
    checked = Run(this.store, this.config.model_copy(update={"train": train}))
    if share < 0.98:
        check_learnt(checked)
    else:
        with pytest.raises(SuperNetCollapsed, match=r"must tell replaced tokens by a loss below"):
            check_learnt(checked)
    assert read_info(this.store)["supernet"]["collapsed"] == (share > 0.98)


def test_a_generator_of_impossible_size_is_refused_before_anything_runs(
    tiny_config: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput, match="pretraining.generator_size"):
        load_config(tiny_config, ["pretraining.generator_size=2"])
    with pytest.raises(InvalidInput, match="pretraining.objective"):
        load_config(tiny_config, ["pretraining.objective=next_token"])
