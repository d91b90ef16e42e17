"""What a configuration costs before it runs: counts, operations, days, and the command."""

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from orchestrator.cli import main
from orchestrator.config import load, parse
from orchestrator.plan import Gpus, plan
from supernet.cost import CostModel, count_params
from supernet.errors import InvalidInput
from supernet.memory import Activations, Pass, memory, operator_activations
from supernet.model import SuperNet, TextShape
from supernet.operators import build_operator
from supernet.space import Architecture

BERT_BASE = Path(__file__).parents[2] / "examples" / "bert_base.yaml"
TINY = {
    "data": {"vocab_size": 200, "sequence_length": 20},
    "space": {
        "layers": 3,
        "hidden_size": 16,
        "dropout": 0.0,
        "candidates": {
            "attention": {"kind": "attention", "heads": 2},
            "feed_forward": {"kind": "feed_forward"},
        },
    },
    "train": {"steps": 10, "batch_size": 8, "sampler": {"name": "uniform"}},
    "search": {"candidates": 5, "valid_sequences": 7},
    "retrain": {"steps": 20, "batch_size": 4, "controls": 1},
}
GPU = Gpus(1, peak_tflops=1.0, utilisation=0.5)


def tiny(**changes):
    """The tiny configuration with keys of `section__key` changed."""
    values = json.loads(json.dumps(TINY))
    for name, value in changes.items():
        section, _, key = name.partition("__")
        values.setdefault(section, {})[key] = value
    return parse(values)


def shape_of(config):
    return TextShape.of(
        config.space,
        vocab_size=config.data.vocab_size,
        max_length=config.data.sequence_length,
        pad_id=0,
        pretraining=config.pretraining,
    )


@pytest.mark.parametrize("objective", ["masked_lm", "replaced_tokens"])
def test_parameters_are_those_of_the_built_models(objective):
    config = tiny(pretraining__objective=objective)
    space, shape, found = config.space.build(), shape_of(config), plan(config, GPU)
    costs = CostModel(space, shape)
    children = [Architecture((name,) * 3) for name in space.operators]
    built = [SuperNet(space.restricted_to(child), shape) for child in children]
    counts = [count_params(model) - _of_generator(model) for model in built]
    assert (found.smallest_child, found.largest_child) == (min(counts), max(counts))
    assert found.supernet_params == count_params(SuperNet(space, shape))
    pattern = Architecture(("attention", "feed_forward", "attention"))
    assert found.transformer == costs.cost(pattern).num_params


def _of_generator(model):
    return 0 if model.generator is None else count_params(model.generator)


def test_a_step_is_three_forward_passes_and_the_anchors_a_fourth_without_head():
    length, width, vocabulary, targets = 20, 16, 200, 3
    head = 2 * targets * (width * width + width * vocabulary)
    pair = 2 * length * (4 * width**2 + 2 * length * width), 2 * length * 8 * width**2
    lowest, highest = (3 * each + head for each in (min(pair), max(pair)))
    work = plan(tiny(), GPU).work["train"]
    mean = work.flops_per_step / (3 * 8)
    assert lowest < mean < highest
    assert mean == pytest.approx(3 * sum(pair) / 2 + head, rel=0.02)
    assert work.flops == 10 * work.flops_per_step and work.tokens == 10 * 8 * 20

    align = {"start": 0.25, "challengers": 1, "sequences": 4, "interval": 2}
    aligned = plan(tiny(train__align=align), GPU).work["train"].flops_per_step
    anchor, rivals = 0.75 * 8 * (mean - head), 0.75 * 2 * 4 / 2 * mean
    assert aligned == pytest.approx(work.flops_per_step + anchor + rivals)


def test_a_teacher_costs_a_forward_pass_and_its_logits():
    alone, taught = plan(tiny(), GPU), plan(tiny(pretraining__teacher={}), GPU)
    length, width, vocabulary, targets = 20, 16, 200, 3
    head = 2 * targets * (width * width + width * vocabulary)
    each = max(4 * width**2 + 2 * length * width, 8 * width**2)
    forward = 3 * 2 * length * each + head
    more = taught.work["train"].flops_per_step - alone.work["train"].flops_per_step
    assert more == pytest.approx(8 * forward)
    assert taught.work["retrain"] == alone.work["retrain"]
    least = 4 * 2 * 8 * targets * vocabulary
    assert all(taught.memory[s].peak >= alone.memory[s].peak + least for s in (0, 1))


def test_another_models_weights_and_passes_count_too(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    teacher = BertForMaskedLM(BertConfig(vocab_size=200, intermediate_size=16, **sizes))
    teacher.config.architectures = ["BertForMaskedLM"]
    teacher.config.save_pretrained(tmp_path)
    alone = plan(tiny(), GPU)
    taught = plan(tiny(pretraining__teacher={"model": str(tmp_path)}), GPU)
    size = count_params(teacher)
    for stage, batch in (("train", 8), ("retrain", 4)):
        more = taught.work[stage].flops_per_step - alone.work[stage].flops_per_step
        assert more == pytest.approx(batch * 2 * 20 * size)
    assert taught.memory[3].weights == alone.memory[3].weights + 4 * size


def test_fairnas_trains_a_path_per_candidate_in_each_step():
    fair = plan(tiny(train__sampler={"name": "fairnas"}), GPU)
    assert fair.paths_per_step == 2
    one = plan(tiny(), GPU).work["train"].flops_per_step
    assert fair.work["train"].flops_per_step == pytest.approx(2 * one)


def test_search_and_retraining_count_children_within_the_limits():
    small = plan(tiny(search__limits="num_params <= 8500"), GPU)
    everything = plan(tiny(), GPU)
    assert small.child_params <= 8_500 < everything.child_params
    assert small.work["search"].tokens == 5 * 7 * 20
    assert small.work["retrain"].tokens == 3 * 20 * 4 * 20
    assert small.work["search"].flops < everything.work["search"].flops
    assert small.work["train"] == everything.work["train"]


def test_a_short_fine_tuning_of_each_child_counts_without_the_head():
    tune = {"task": "sst2", "data": "x", "steps": 4, "batch_size": 3, "seeds": 2, "dev_examples": 5}
    alone, tuned = plan(tiny(), GPU), plan(tiny(search__finetune=tune), GPU)
    more = tuned.work["search"].flops_per_step - alone.work["search"].flops_per_step
    length, width, vocabulary, targets = 20, 16, 200, 3
    head = 2 * targets * (width * width + width * vocabulary)
    encoder = alone.work["search"].flops_per_step / 7 - head
    assert more == pytest.approx((3 * 2 * 4 * 3 + 2 * 5) * encoder)
    sequences = 2 * 4 * 3 + 2 * 5
    assert tuned.work["search"].tokens - alone.work["search"].tokens == 5 * sequences * length


def test_days_shrink_with_gpus_and_retraining_uses_one_per_model():
    config = tiny(search__candidates=200)
    one, eight = (plan(config, Gpus(n, peak_tflops=1.0, utilisation=0.5)) for n in (1, 8))
    assert one.work["train"].days == pytest.approx(one.work["train"].flops / 5e11 / 86_400)
    assert eight.work["train"].days == pytest.approx(one.work["train"].days / 8)
    assert eight.work["retrain"].days == pytest.approx(one.work["retrain"].days / 3)
    assert [work.gpus for work in eight.work.values()] == [8, 8, 3]


def test_with_an_own_scorer_no_supernet_is_trained():
    config = tiny(search__scorer={"name": "math:floor"}, search__objectives={"x": "max"})
    assert set(plan(config, GPU).work) == {"retrain"}


def test_zero_shards_what_each_stage_shards():
    kept = Activations(stem=10, layers=(10,), head=10, outputs=0, loss=0)
    args = {"num_params": 1000, "on_path": [100, 200, 300], "kept": kept}
    whole, two, three = (memory(stage=s, workers=4, **args) for s in (0, 2, 3))
    assert (whole.weights, whole.master, whole.optimiser, whole.gradients) == (4000, 0, 8000, 2400)
    assert (two.weights, two.master, two.optimiser, two.gradients) == (4000, 1000, 2000, 1400)
    assert (three.weights, three.master, three.optimiser, three.gradients) == (1000, 0, 2000, 2400)


def test_an_own_operator_is_traced_and_comes_near_the_formula():
    import torch
    from torch import nn

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build_operator({"kind": "feed_forward"}, hidden_size=16, dropout=0.0)

        def forward(self, hidden, mask):
            return self.inner(hidden, mask)

    one = Pass(2, 10, 3)
    with torch.device("meta"):
        own = Own()
    assert operator_activations(own, 16, one) == operator_activations(own.inner, 16, one)


def test_bert_base_is_of_the_papers_scale():
    config = load(BERT_BASE)
    found = plan(config, Gpus(config.train.workers))
    bert = 24 * 768 * 768 * 6 + 12 * 768 * (4 + 4 + 1 + 4) + 768 * (30522 + 128 + 2)
    ends = 2 * 768 + 768 * 768 + 3 * 768 + 30522
    assert found.transformer == bert + ends
    assert 105e6 <= found.child_params <= 112e6
    assert found.vocab_size == 30522
    space = config.space.build()
    assert len(space.layers) == 24 and config.space.hidden_size == 768
    assert space.sample(random.Random(0)).operators[0] in space.operators


def test_the_command_prints_tables_and_ends_with_json(capsys):
    assert main(["plan", str(BERT_BASE), "--set", "data.vocab_size=1000", "--gpus", "4"]) == 0
    *tables, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    found = plan(load(BERT_BASE, ["data.vocab_size=1000"]), Gpus(4))
    assert figures == json.loads(json.dumps(asdict(found)))
    assert any("memory per GPU" in line for line in tables)


def test_fp32_has_its_own_peak_and_limits_of_latency_are_said_to_be_left_out(capsys):
    fp32 = ["--set", "train.precision=fp32", "--set", "search.limits=latency_ms <= 1"]
    assert main(["plan", str(BERT_BASE), "--set", "data.vocab_size=1000", *fp32]) == 0
    out = capsys.readouterr().out
    assert "GPUs of 19.5 TFLOPS" in out and "limits of latency_ms are left out" in out
    assert main(["plan", str(BERT_BASE), "--set", "data.vocab_size=1000"]) == 0
    out = capsys.readouterr().out
    assert "GPUs of 312 TFLOPS" in out and "latency" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.yaml"], "missing.yaml"),
        ([str(BERT_BASE), "--gpus", "0"], "gpus must be at least 1"),
        ([str(BERT_BASE), "--utilisation", "1.5"], "utilisation must be above 0"),
        ([str(BERT_BASE), "--peak-tflops", "-1"], "peak-tflops must be above 0"),
        ([str(BERT_BASE), "--gpus", "7"], "multiple of workers"),
        ([str(BERT_BASE), "--set", "search.limits=num_params <= 1e6"], "no architecture"),
        ([str(BERT_BASE), "--set", "space.layer=3"], "did you mean 'layers'"),
        ([str(BERT_BASE), "--set", "data.tokenizer=no/such/folder"], "no/such/folder"),
        (
            [str(BERT_BASE), "--set", "pretraining.teacher.model=/no/model"],
            "/no/model is no folder",
        ),
    ],
)
def test_bad_input_ends_with_a_sentence(capsys, monkeypatch, arguments, says):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["plan", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_child_that_fits_no_gpu_count_is_refused():
    with pytest.raises(InvalidInput, match="multiple of workers"):
        plan(tiny(), Gpus(3))
