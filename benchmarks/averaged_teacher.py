"""MAGIC-A whose anchor runs with a moving average of the weights (our own)."""

import copy
from typing import Any

import torch

from supernet.alignment import Anchor, Anchors, Score, distance_of_states
from supernet.data.masking import Batch
from supernet.loss import States, padding_mask
from supernet.model import SuperNet
from supernet.sampler import Paths
from supernet.space import Architecture


class AveragedTeacher(Anchors):
    """Anchors whose hidden states come from averaged weights, in all layers of the child.

    Args:
        model: the super-net in training.
        decay: of the average, per step.
    """

    def __init__(self, *args: Any, model: SuperNet, decay: float, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._model, self._decay = model, decay
        self._teacher = copy.deepcopy(model).requires_grad_(False)

    def update(self, step: int, paths: Paths, score: Score) -> Anchor | None:
        """Take the last step's weights into the average; the anchor is judged by its own."""
        with torch.no_grad():
            mean = [parameter.detach() for parameter in self._teacher.parameters()]
            now = [parameter.detach() for parameter in self._model.parameters()]
            torch._foreach_lerp_(mean, now, 1 - self._decay)
        return super().update(step, paths, score)

    def distance(
        self, model: SuperNet, architecture: Architecture, states: States, batch: Batch
    ) -> torch.Tensor:
        """The alignment loss against the anchor's hidden states under the averaged weights."""
        assert self.current is not None
        mask_BT = padding_mask(batch)
        with torch.no_grad():
            anchor = self.current.architecture
            theirs = self._teacher.states(anchor, batch.input_ids_BT, mask_BT)
        pairs = list(zip(states[1:], theirs[1:], strict=True))
        return distance_of_states(
            pairs, mask_BT, num_layers=len(pairs), normalise=self.settings.normalise
        )
