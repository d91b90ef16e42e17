"""PathAdamW: PyTorch's AdamW to the bit on the path, and nothing off it, whole or in shards."""

import random

import pytest
import torch
from training_jobs import SPACE, Recorder, batches, job, largest_difference, settings, supernet

from benchmarks.path_watch import PathWatch
from supernet.engine import PlainEngine
from supernet.loss import masked_lm_loss
from supernet.path_adamw import PathAdamW, PathParameters, cut
from supernet.sampler import UniformSampler
from supernet.training import learning_rate, train

HARD = {"weight_decay": 0.3, "clip_norm": 0.1, "accumulation": 2, "learning_rate": 3e-3}


def two_paths(start, count):
    """Two paths a step, drawn uniformly; they share some operators."""
    one, other = (UniformSampler(SPACE, seed=seed).plan(start, count) for seed in (1, 2))
    return [(*a, *b) for a, b in zip(one, other, strict=True)]


def plain_pytorch(recipe, plan):
    """PyTorch alone: all parameters in the optimiser, no gradient where there is none."""
    model = supernet(dropout=0.0)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups, weight_decay=recipe.weight_decay, betas=(0.9, recipe.adam_beta2), fused=True
    )
    for step, paths in enumerate(plan(0, recipe.steps)):
        optimizer.zero_grad()
        parts = [
            batches(recipe).at(step, part=part, parts=recipe.accumulation)
            for part in range(recipe.accumulation)
        ]
        targets = len(paths) * sum(batch.num_targets for batch in parts)
        for path in paths:
            for batch in parts:
                bf16 = recipe.precision == "bf16"
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    loss, _ = masked_lm_loss(model, path, batch)
                (loss / targets).backward()
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        optimizer.step()
    return model


def watched_training(recipe, plan):
    """Train with plain PyTorch's engine, watched; returns the watch."""
    watch = PathWatch(PlainEngine(supernet(dropout=0.0), recipe))
    train(watch, job(recipe, plan=plan), Recorder(), resume_from=None)
    return watch


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ({}, 2e-6),  # the norm is summed up in another order
        ({"clip_norm": 0}, 0),
        ({"clip_norm": 0, "precision": "bf16"}, 0),
    ],
)
def test_a_training_on_paths_is_that_of_pytorchs_adamw(changes, bound):
    recipe = settings(**{**HARD, "steps": 12, **changes})
    watch = watched_training(recipe, two_paths)
    wanted = plain_pytorch(recipe, two_paths).state_dict()
    assert largest_difference(wanted, watch.model.state_dict()) <= bound


def test_off_the_path_neither_weights_nor_states_move():
    watch = watched_training(settings(**{**HARD, "steps": 12}), two_paths)
    assert watch.off_path_moved == 0
    assert watch.on_path_moved > 0


def test_the_watch_sees_what_moves_when_all_parameters_are_stepped(monkeypatch):
    monkeypatch.setattr(PathParameters, "begin", lambda self, paths: None)
    taken = PathAdamW.step

    def step_with_zeros(self, closure=None):
        for parameter in self.on_path.named.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        taken(self, closure)

    monkeypatch.setattr(PathAdamW, "step", step_with_zeros)
    assert watched_training(settings(**{**HARD, "steps": 3}), two_paths).off_path_moved > 0


def test_what_is_on_the_path_requires_a_gradient_and_nothing_else_does():
    model = supernet()
    on_path = PathParameters(model)
    rng = random.Random(0)
    for count in (1, 2, 1, 3, 1, 1):
        paths = [SPACE.sample(rng) for _ in range(count)]
        on_path.begin(paths)
        learning = {name for name, p in model.named_parameters() if p.requires_grad}
        assert learning == set(on_path.named)
        operators = {
            f"chain.layers.{n}.{o}." for path in paths for n, o in enumerate(path.operators)
        }
        assert learning == {
            name
            for name in model.state_dict()
            if not name.startswith("chain.") or name.startswith(tuple(operators))
        }


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_the_pieces_of_all_workers_make_up_every_parameter(workers):
    parameters = [torch.randn(5, 7), torch.randn(1), torch.randn(23), torch.randn(4, 4)]
    sizes = [p.numel() for p in parameters]
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    flat = torch.cat([p.flatten() for p in parameters])
    flat = torch.cat([flat, torch.zeros(-len(flat) % workers)])
    names = [str(i) for i in range(len(sizes))]
    joined = [torch.full_like(p, torch.nan) for p in parameters]
    for worker, shard in enumerate(flat.chunk(workers)):
        spans = zip(names, begins, sizes, strict=True)
        for name, piece in cut(shard, start=worker * len(shard), parameters=spans).items():
            assert piece.of(parameters[int(name)]).equal(piece.tensor)
            piece.write(piece.tensor, into=joined[int(name)])
    for parameter, whole in zip(parameters, joined, strict=True):
        assert parameter.equal(whole)
