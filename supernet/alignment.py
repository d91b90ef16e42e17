"""MAGIC-A: the hidden states of every child are drawn towards those of an anchor child.

After "Analyzing and Mitigating Interference in Neural Architecture Search" (ICML 2022): inputs and
outputs of a shared operator are made similar across children by aligning each with a top-performing
one. In a chain the output of layer l is the input of layer l + 1, so outputs are enough. How the
distance is measured, when alignment starts and how anchors are found are our own choice.

B: sequences, T: tokens, D: hidden size.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.errors import InvalidInput
from supernet.loss import States, padding_mask
from supernet.model import SuperNet
from supernet.sampler import Paths
from supernet.settings import AlignSettings
from supernet.space import Architecture, SearchSpace

Score = Callable[[Sequence[Architecture], Batch], list[float]]
"""Losses in nats of some children on a batch, the same on every worker."""


@dataclass(frozen=True)
class Anchor:
    """The child that others are aligned with; `val_loss_nats` is what it was chosen by."""

    step: int
    architecture: Architecture
    val_loss_nats: float
    previous: Architecture | None = None
    previous_loss_nats: float | None = None
    """Of the anchor that it replaced, on the same batch."""
    changes: int = 0
    """How many anchors came before it."""

    def to_row(self) -> dict[str, Any]:
        """Plain values, for rows and manifests."""
        previous = self.previous and str(self.previous)
        return {**asdict(self), "architecture": str(self.architecture), "previous": previous}


class Anchors:
    """Chooses the anchor, and replaces it when a challenger scores better on the same batch.

    Args:
        batches: held-out batches, taken in turn.

    Raises:
        InvalidInput: if a layer to compare is not one of the space's.
    """

    def __init__(
        self,
        settings: AlignSettings,
        space: SearchSpace,
        batches: Sequence[Batch],
        *,
        steps: int,
        seed: int,
    ) -> None:
        check_layers(settings, space)
        self.settings = settings
        self.current: Anchor | None = None
        self._space = space
        self._batches = batches
        self._steps = steps
        self._seed = seed
        self._start = round(settings.start * steps)

    def weight(self, step: int) -> float:
        """λ at a step: 0 before the start, then rising to its full value."""
        if step < self._start or self.current is None:
            return 0.0
        ramp = max(1.0, self.settings.ramp * self._steps)
        return self.settings.weight * min(1.0, (step - self._start + 1) / ramp)

    def update(self, step: int, paths: Paths, score: Score) -> Anchor | None:
        """The new anchor, if one is due at this step and better; paths are those of the step."""
        if not self.settings.weight or step < self._start:
            return None
        since = step - self._start
        if self.current is not None and since % self.settings.interval:
            return None
        before = self.current.architecture if self.current else None
        rivals = self._rivals(step, paths)
        batch = self._batches[since // self.settings.interval % len(self._batches)]
        losses = score([*([before] if before else []), *rivals], batch)
        return self._take_best(step, before, rivals, losses)

    def distance(
        self, model: SuperNet, architecture: Architecture, states: States, batch: Batch
    ) -> torch.Tensor:
        """`alignment_loss` of a child against the current anchor; there must be one."""
        assert self.current is not None
        anchor = self.current.architecture
        return alignment_loss(model, architecture, anchor, states, batch, self.settings)

    def resume(self, row: dict[str, Any] | None) -> None:
        """Go on with the anchor of a checkpoint, as `Anchor.to_row` gave it."""
        if row is None:
            self.current = None
            return
        parsed = {
            key: row[key] and Architecture.parse(row[key]) for key in ("architecture", "previous")
        }
        self.current = Anchor(**{**row, **parsed})

    def _rivals(self, step: int, paths: Paths) -> list[Architecture]:
        """The step's own paths and others at random, the anchor left out."""
        first = self.current is None
        count = self.settings.first_candidates if first else self.settings.challengers
        rng = random.Random(f"anchor:{self._seed}:{step}")
        drawn = [*paths, *(self._space.sample(rng) for _ in range(count))][:count]
        anchor = self.current and self.current.architecture
        return [path for path in dict.fromkeys(drawn) if path != anchor]

    def _take_best(
        self,
        step: int,
        before: Architecture | None,
        rivals: list[Architecture],
        losses: list[float],
    ) -> Anchor | None:
        loss_before = losses[0] if before else None
        changes = self.current.changes + 1 if self.current else 0
        rated = zip(losses[1 if before else 0 :], rivals, strict=True)
        finite = [(loss, path) for loss, path in rated if math.isfinite(loss)]
        if not finite:
            return None
        loss, best = min(finite, key=lambda found: found[0])
        if loss_before is not None and loss >= loss_before:
            return None
        self.current = Anchor(step, best, loss, before, loss_before, changes)
        return self.current


def check_layers(settings: AlignSettings, space: SearchSpace) -> None:
    """Raise InvalidInput if a layer to compare is not one of the space's."""
    wrong = [layer for layer in settings.layers or () if layer >= len(space.layers)]
    if wrong:
        raise InvalidInput(
            f"train.align.layers must name layers from 0 to {len(space.layers) - 1}, but got "
            f"{wrong[0]}"
        )


def alignment_loss(
    model: SuperNet,
    architecture: Architecture,
    anchor: Architecture,
    states: States,
    batch: Batch,
    settings: AlignSettings,
) -> torch.Tensor:
    """Squared distance between a child's hidden states and the anchor's, summed over real tokens.

    A mean over the compared layers and over D. Both use the same weights and batch; no gradient
    reaches the anchor's side. Up to the first layer in which the two differ their hidden states
    are one and the same, so the anchor is run from there on alone; for the anchor itself the loss
    is zero. Where the two differ in width they are not compared (our own choice).

    Args:
        states: the child's, as `SuperNet.states` gives them: L + 1 of (B, T, D).
    """
    layers = range(len(architecture.operators)) if settings.layers is None else settings.layers
    first = architecture.first_difference(anchor)
    compared = [layer for layer in layers if layer >= first]
    if not compared:
        return states[0].new_zeros(())
    mask_BT = padding_mask(batch)
    with torch.no_grad():
        theirs = list(model.chain.states(states[first], mask_BT, anchor.operators, first=first))
    both = [(states[layer + 1], theirs[layer - first]) for layer in compared]
    pairs = [(ours, other) for ours, other in both if ours.shape == other.shape]
    if not pairs:
        return states[0].new_zeros(())
    return distance_of_states(pairs, mask_BT, num_layers=len(layers), normalise=settings.normalise)


def distance_of_states(
    pairs: Sequence[tuple[torch.Tensor, torch.Tensor]],
    mask_BT: torch.Tensor | None,
    *,
    num_layers: int,
    normalise: bool,
) -> torch.Tensor:
    """Squared distance of hidden states (B, T, D), over `num_layers`: summed over real tokens."""
    distances_KBT = [_distance(*pair, normalise=normalise) for pair in pairs]
    distance_BT = torch.stack(distances_KBT).sum(0) / num_layers
    return (distance_BT if mask_BT is None else distance_BT[mask_BT]).sum()


def _distance(ours_BTD: torch.Tensor, theirs_BTD: torch.Tensor, *, normalise: bool) -> torch.Tensor:
    """Mean squared difference over D (B, T), in fp32."""
    ours_BTD, theirs_BTD = ours_BTD.float(), theirs_BTD.float()
    if normalise:
        ours_BTD, theirs_BTD = (F.layer_norm(x, x.shape[-1:]) for x in (ours_BTD, theirs_BTD))
    return (ours_BTD - theirs_BTD).square().mean(-1)
