"""Masked-language-model loss of one child model: what training minimises and scores report.

N: masked positions, V: vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.model import SuperNet
from supernet.space import Architecture

States = list[torch.Tensor]


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


def evaluate(
    model: SuperNet, architecture: Architecture, batches: Sequence[Batch]
) -> tuple[float, float]:
    """A child's loss in nats and its accuracy, both means over all masked positions.

    Raises:
        InvalidInput: if the batches have no masked position.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _means(model, architecture, batches)
    finally:
        model.train(was_training)


def _means(
    model: SuperNet, architecture: Architecture, batches: Sequence[Batch]
) -> tuple[float, float]:
    device = next(model.parameters()).device
    count = count_targets(batches)
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for batch in batches:
        batch = batch.to(device)
        sums += tally(_logits(model, architecture, batch), batch)
    loss_sum, correct = sums.tolist()
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
