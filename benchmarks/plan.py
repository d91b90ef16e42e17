"""How well `magic-nas plan` foretells memory: formulas against what small networks really take.

    python -m benchmarks.plan [--quick]

Activations: the storages that autograd keeps for the backward pass, and the layers' outputs. Peak:
what PyTorch's allocator gave out at most during a step of plain PyTorch, weights and Adam's state
included. ZeRO: the storages of all tensors of a process after the backward pass and after the
update, with DeepSpeed and one worker. All on a CPU. `error` is planned over measured, less one.
"""

import argparse
import gc
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForMaskedLM

from benchmarks.record import write_record
from orchestrator.plan import parameters_of
from supernet.cost import CostModel, count_params
from supernet.data.masking import Batch
from supernet.distillation import Teacher
from supernet.engine import Engine, PlainEngine
from supernet.loss import PretrainingLoss, pretraining_loss
from supernet.memory import BUCKET, UNTAUGHT, Pass, Teaching, activations, id_of, memory
from supernet.model import SuperNet, TextShape
from supernet.settings import OptimiserSettings, PretrainingSettings, SpaceSettings
from supernet.space import Architecture

SEED = 0
_CANDIDATES: dict[str, dict[str, Any]] = {
    "attention": {"kind": "attention", "heads": 4},
    "feed_forward": {"kind": "feed_forward"},
    "conv5": {"kind": "separable_conv", "kernel_size": 5},
}


@dataclass(frozen=True)
class Case:
    """A small network and a step of it."""

    name: str
    hidden_size: int = 128
    layers: int = 6
    vocab_size: int = 1000
    sequences: int = 8
    length: int = 64
    dropout: float = 0.0
    precision: str = "fp32"
    embedding_size: int | None = None
    objective: str = "masked_lm"
    candidates: Mapping[str, dict[str, Any]] | None = None
    teacher: Literal["path", "model"] | None = None

    def model(self) -> SuperNet:
        """The super-net, initialised."""
        torch.manual_seed(SEED)
        space = SpaceSettings(
            layers=self.layers,
            hidden_size=self.hidden_size,
            embedding_size=self.embedding_size,
            dropout=self.dropout,
            candidates=dict(self.candidates or _CANDIDATES),
        )
        shape = TextShape.of(
            space,
            vocab_size=self.vocab_size,
            max_length=self.length,
            pad_id=0,
            pretraining=PretrainingSettings.model_validate({"objective": self.objective}),
        )
        return SuperNet(space.build(), shape)

    def batch(self) -> Batch:
        """Random tokens, every seventh a target."""
        shape = (self.sequences, self.length)
        ids_BT = torch.randint(1, self.vocab_size, shape)
        masked_N = torch.arange(0, ids_BT.numel(), 7)
        targets_N = torch.randint(1, self.vocab_size, masked_N.shape)
        return Batch(ids_BT, torch.ones(shape, dtype=torch.bool), masked_N, targets_N)

    def one_pass(self) -> Pass:
        """What the formulas are told."""
        targets = self.batch().num_targets
        return Pass(self.sequences, self.length, targets, self.precision, "cpu")  # type: ignore[arg-type]

    def another(self) -> BertForMaskedLM | None:
        """The model that teaches, where none of the super-net's paths does."""
        if self.teacher != "model":
            return None
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return BertForMaskedLM(
            BertConfig(vocab_size=self.vocab_size, intermediate_size=256, **sizes)
        ).eval()

    def teaching(self) -> Teaching:
        """What the formulas say of the teacher."""
        if self.teacher is None:
            return UNTAUGHT
        another = self.another()
        num_params = 0 if another is None else count_params(another)
        return Teaching.of(self.one_pass(), self.vocab_size, num_params=num_params)

    def autocast(self) -> torch.autocast:
        """As the training loop casts."""
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def settings(self) -> OptimiserSettings:
        """A recipe."""
        return OptimiserSettings(batch_size=self.sequences, learning_rate=1e-4)


CASES = (
    Case("three kinds of operator"),
    Case("bf16", precision="bf16"),
    Case("dropout", dropout=0.1),
    Case("bf16, dropout", dropout=0.1, precision="bf16"),
    Case("large vocabulary", vocab_size=8000, layers=4),
    Case("narrow embeddings, wide chain", hidden_size=256, embedding_size=64, layers=4),
    Case("long sequences, small batch", length=256, sequences=2),
    Case(
        "learnt bias by distance",
        candidates={"attention": {"kind": "attention", "heads": 4, "relative_reach": 8}},
    ),
    Case("replaced tokens", objective="replaced_tokens"),
    Case("a path teaches", vocab_size=4000, teacher="path"),
    Case("another model teaches", vocab_size=4000, teacher="model"),
    Case("weights outweigh activations", hidden_size=384, layers=8, sequences=1, length=32),
)


def heaviest(model: SuperNet) -> Architecture:
    """The path with most parameters."""
    return CostModel(model.space, model.shape).dearest("num_params")


def measured_activations(model: SuperNet, path: Architecture, case: Case) -> int:
    """Bytes of the storages that autograd keeps and of the states, weights left out."""
    known = {id_of(parameter) for parameter in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if id_of(tensor) not in known:
            kept[id_of(tensor)] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        found = _forward(model, path, case)
    for state in found.states:
        keep(state)
    return sum(size for size, _ in kept.values())


def step(engine: Engine, path: Architecture, case: Case, teacher: Teacher | None = None) -> None:
    """One step as the training loop takes it."""
    engine.begin([path])
    found = _forward(engine.model, path, case)
    loss = _loss(found)
    if teacher is not None:
        assert found.logits_NV is not None
        with case.autocast():
            loss = loss + teacher.loss_sum(engine.model, path, found.logits_NV, found.seen)
    engine.backward(loss)
    engine.update(1e-4)


def measured_peak(case: Case) -> int:
    """Bytes of the allocator at most in a step on the heaviest path, all operators trained before.

    The profiler counts what the step allocates; weights and Adam's state, there before, are added.
    """
    engine = PlainEngine(case.model(), case.settings())
    for name in engine.model.space.operators:
        step(engine, Architecture((name,) * case.layers), case)
    standing = sum(4 * parameter.numel() for parameter in engine.model.parameters())
    standing += sum(tensor.nbytes for tensor in engine.optimizer_state().values())
    path, another = heaviest(engine.model), case.another()
    teacher = None
    if another is not None:
        standing += sum(4 * parameter.numel() for parameter in another.parameters())
        teacher = Teacher(1.0, 2.0, predict=lambda ids, mask: another(ids, mask.long()).logits)
    elif case.teacher:
        lightest = CostModel(engine.model.space, engine.model.shape).cheapest("num_params")
        teacher = Teacher(1.0, 2.0, path=lightest)  # the heaviest would teach itself nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(engine, path, case, teacher)
    return standing + _most_allocated(profiler)


def _most_allocated(profiler: Any) -> int:
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def measured_zero(case: Case, stage: int) -> dict[str, int]:
    """Bytes of all tensors between steps (`standing`) and before the update on top of that.

    A world of one must have been formed. The bucket of reduction is left out.
    """
    from supernet.deepspeed_engine import DeepSpeedEngine

    before = _bytes_of_all_tensors()
    engine = DeepSpeedEngine(
        case.model(), case.settings(), zero_stage=stage, micro_batch=case.sequences
    )
    for name in engine.model.space.operators:
        step(engine, Architecture((name,) * case.layers), case)
    standing = _bytes_of_all_tensors() - before
    engine.begin([Architecture(tuple(case_path(case)))])
    engine.backward(_loss(_forward(engine.model, Architecture(tuple(case_path(case))), case)))
    gradients = _bytes_of_all_tensors() - before - standing
    engine.update(1e-4)
    if stage == 3:
        standing -= BUCKET
    return {"standing": standing, "gradients": gradients - (BUCKET if stage == 1 else 0)}


def case_path(case: Case) -> list[str]:
    """The operators of the case's heaviest path."""
    return list(heaviest(case.model()).operators)


def planned_zero(case: Case, stage: int) -> dict[str, int]:
    """What the formulas say of `measured_zero`."""
    model = case.model()
    path = heaviest(model)
    need = memory(
        stage=stage,
        workers=1,
        num_params=count_params(model),
        on_path=parameters_of(model, path),
        kept=activations(model, path, case.one_pass()),
    )
    standing = need.weights + need.master + need.optimiser
    always = 2 * need.weights if stage == 3 else 0
    return {"standing": standing + always, "gradients": need.gradients - always}


def planned(case: Case) -> dict[str, int]:
    """What the formulas say of activations and of the peak of plain PyTorch."""
    model = case.model()
    path = heaviest(model)
    kept = activations(model, path, case.one_pass())
    need = memory(
        stage=0,
        workers=1,
        num_params=count_params(model),
        on_path=parameters_of(model, path),
        kept=kept,
        teaching=case.teaching(),
    )
    return {"activations": kept.total, "peak": need.peak}


def measured(case: Case) -> dict[str, int]:
    """The same, measured."""
    model = case.model()
    found = measured_activations(model, heaviest(model), case)
    return {"activations": found, "peak": measured_peak(case)}


def _forward(model: SuperNet, path: Architecture, case: Case) -> PretrainingLoss:
    with case.autocast():
        return pretraining_loss(model, path, case.batch())


def _loss(found: PretrainingLoss) -> torch.Tensor:
    parts = [found.child_sum, found.generator_sum]
    return torch.stack([part for part in parts if part is not None]).sum()


def _bytes_of_all_tensors() -> int:
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.device.type == "cpu":
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def run(*, quick: bool) -> list[dict[str, Any]]:
    """A row per figure, printed as it comes."""
    rows: list[dict[str, Any]] = []

    def add(case: Case, figure: str, said: int, found: int) -> None:
        rows.append({"case": case.name, "figure": figure, "planned": said, "measured": found})
        rows[-1]["error"] = said / found - 1
        print(
            f"{case.name:<32} {figure:<20} {said / 1e6:9.2f} MB planned {found / 1e6:9.2f} "
            f"measured {rows[-1]['error']:+7.1%}",
            flush=True,
        )

    for case in CASES[:4] if quick else CASES:
        said, found = planned(case), measured(case)
        for figure in said:
            add(case, figure, said[figure], found[figure])
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LOCAL_RANK", "0")
        meeting = f"file://{Path(folder) / 'meeting'}"
        dist.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
        for case in CASES[:1] if quick else (CASES[0], CASES[-1]):
            for stage in (0, 1, 2, 3):
                said, found = planned_zero(case, stage), measured_zero(case, stage)
                for figure in said:
                    add(case, f"ZeRO {stage}: {figure}", said[figure], found[figure])
        dist.destroy_process_group()
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="four networks")
    quick = parser.parse_args().quick
    rows = run(quick=quick)
    worst = max(abs(row["error"]) for row in rows)
    results = {"worst_error": worst, "rows": rows, "quick": quick}
    if not quick:
        write_record("plan", results, seeds={"torch": SEED})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
