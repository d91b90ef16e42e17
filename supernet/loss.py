"""The loss of one child model: what training minimises and scores report.

A child's loss is a cross-entropy at a batch's targets: masked LM, or, for replaced tokens, at the
batch that the generator made of it (`supernet.replaced_tokens`).

N: masked positions, V: vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.replaced_tokens import fixed_uniforms, replace_tokens
from supernet.space import Architecture

States = list[torch.Tensor]


@dataclass(frozen=True)
class PretrainingLoss:
    """A child's share of a training step; both losses are sums in nats."""

    child_sum: torch.Tensor
    generator_sum: torch.Tensor | None
    """None for masked LM."""
    states: States
    """Of the child: the stem's and each layer's output (B, T, D)."""
    seen: Batch
    """What the child saw; for replaced tokens its targets are all real tokens."""
    logits_NV: torch.Tensor
    """The child's, at the targets."""


def masked_lm_loss(
    model: SuperNet, architecture: Architecture, batch: Batch
) -> tuple[torch.Tensor, int]:
    """Cross-entropy in nats, summed over the masked positions, and how many these are."""
    return _loss_sum(_logits(model, architecture, batch), batch), batch.targets_N.numel()


def masked_lm_loss_and_states(
    model: SuperNet, architecture: Architecture, batch: Batch
) -> tuple[torch.Tensor, States]:
    """Summed cross-entropy in nats, and the stem's and each layer's output (B, T, D)."""
    states = model.states(architecture, batch.input_ids_BT, padding_mask(batch))
    return _loss_sum(model.predict(states[-1], batch.masked_N), batch), states


def pretraining_loss(model: SuperNet, architecture: Architecture, batch: Batch) -> PretrainingLoss:
    """What a training step minimises, by the model's objective; tokens are drawn by torch's RNG."""
    seen, generator_sum = batch, None
    if model.generator is not None:
        drawn_NV = _generator_logits(model, batch)
        uniform_N = torch.rand(batch.num_targets, device=drawn_NV.device)
        seen, generator_sum = replace_tokens(batch, drawn_NV, uniform_N), _loss_sum(drawn_NV, batch)
    states = model.states(architecture, seen.input_ids_BT, padding_mask(seen))
    logits_NV = model.predict(states[-1], seen.masked_N)
    return PretrainingLoss(_loss_sum(logits_NV, seen), generator_sum, states, seen, logits_NV)


def as_scored(model: SuperNet, batches: Sequence[Batch]) -> list[Batch]:
    """What children are scored on, on the model's device.

    For masked LM the batches themselves. For replaced tokens what the model's own generator makes
    of them, the same every time and for a sequence in whatever batch.
    """
    device = next(model.parameters()).device
    batches = [batch.to(device) for batch in batches]
    if model.generator is None:
        return batches
    with without_learning(model):
        return [_corrupted(model, batch)[0] for batch in batches]


def evaluate(
    model: SuperNet, architecture: Architecture, batches: Sequence[Batch]
) -> tuple[float, float]:
    """A child's loss in nats and its accuracy, both means over all targets.

    Targets are the masked positions; for replaced tokens every real token of the batches that
    `as_scored` gives, so the generator's weights count too.

    Raises:
        InvalidInput: if the batches have no masked position.
    """
    return evaluate_each(model, [architecture], batches)[0]


def evaluate_each(
    model: SuperNet, architectures: Sequence[Architecture], batches: Sequence[Batch]
) -> list[tuple[float, float]]:
    """`evaluate` of several children, for which the generator runs once.

    Raises:
        InvalidInput: if the batches have no masked position.
    """
    count_targets(batches)
    seen = as_scored(model, batches)
    with without_learning(model):
        return [_means(model, architecture, seen) for architecture in architectures]


def generator_figures(model: SuperNet, batches: Sequence[Batch]) -> dict[str, float]:
    """How hard the model's generator makes it: nothing for masked LM.

    `generator_loss_nats` is its mean loss over the masked positions, `replaced_entropy_nats` the
    entropy of the share of replaced tokens: what a child that knows that share alone comes to.
    """
    if model.generator is None:
        return {}
    device = next(model.parameters()).device
    loss_sum, replaced, tokens = 0.0, 0, 0
    with without_learning(model):
        for batch in batches:
            seen, loss = _corrupted(model, batch.to(device))
            loss_sum += float(loss)
            replaced += int(seen.targets_N.sum())
            tokens += seen.num_targets
    share = torch.tensor([replaced / tokens, 1 - replaced / tokens], dtype=torch.float64)
    return {
        "generator_loss_nats": loss_sum / count_targets(batches),
        "replaced_entropy_nats": float(torch.special.entr(share).sum()),
    }


@contextmanager
def without_learning(model: SuperNet) -> Iterator[None]:
    """Without dropout and gradients; the model is left as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _corrupted(model: SuperNet, batch: Batch) -> tuple[Batch, torch.Tensor]:
    """A batch as children are scored on it, and the generator's summed loss on its targets."""
    logits_NV = _generator_logits(model, batch)
    return replace_tokens(batch, logits_NV, fixed_uniforms(batch)), _loss_sum(logits_NV, batch)


def _generator_logits(model: SuperNet, batch: Batch) -> torch.Tensor:
    return model.generator_logits(batch.input_ids_BT, padding_mask(batch), batch.masked_N)


def _means(
    model: SuperNet, architecture: Architecture, seen: Sequence[Batch]
) -> tuple[float, float]:
    sums = torch.zeros(2, dtype=torch.float64, device=seen[0].input_ids_BT.device)
    for batch in seen:
        sums += tally(_logits(model, architecture, batch), batch)
    loss_sum, correct = sums.tolist()
    count = count_targets(seen)
    return loss_sum / count, correct / count


def count_targets(batches: Sequence[Batch]) -> int:
    """The masked positions of all batches.

    Raises:
        InvalidInput: if there are none.
    """
    count = sum(batch.num_targets for batch in batches)
    if not count:
        raise InvalidInput(
            f"an evaluation needs at least one masked token, but {len(batches)} batches have none; "
            f"evaluate on more sequences or raise data.mask_probability"
        )
    return count


def tally(logits_NV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The summed cross-entropy in nats and how many of the targets are hit: two float64 values."""
    hits = (logits_NV.argmax(-1) == batch.targets_N).sum()
    return torch.stack([_loss_sum(logits_NV, batch).double(), hits.double()])


def padding_mask(batch: Batch) -> torch.Tensor | None:
    """True at real tokens (B, T); None without padding, for attention is faster then."""
    return None if bool(batch.attention_mask_BT.all()) else batch.attention_mask_BT


def _logits(model: SuperNet, architecture: Architecture, batch: Batch) -> torch.Tensor:
    logits_NV: torch.Tensor = model(
        architecture, batch.input_ids_BT, padding_mask(batch), batch.masked_N
    )
    return logits_NV


def _loss_sum(logits_NV: torch.Tensor, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(logits_NV.float(), batch.targets_N, reduction="sum")
