"""Distillation in masked LM: a child learns from a teacher's predictions beside the text's tokens.

The loss is temperature² × the Kullback-Leibler divergence of the two softened distributions, as in
"Distilling the Knowledge in a Neural Network" (2015).

B: sequences, T: tokens, N: masked positions, V: vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from supernet.data.masking import Batch
from supernet.loss import padding_mask, without_learning
from supernet.model import SuperNet
from supernet.space import Architecture

Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Token ids and mask, True at real tokens, both (B, T), to logits (B, T, V or more)."""


@dataclass(frozen=True)
class Teacher:
    """Who teaches: a path of the super-net itself, or another model.

    Args:
        predict: of another model; None: `path` is the teacher.
    """

    weight: float
    temperature: float
    path: Architecture | None = None
    predict: Predict | None = None

    def loss_sum(
        self,
        model: SuperNet,
        architecture: Architecture,
        logits_NV: torch.Tensor,
        batch: Batch,
    ) -> torch.Tensor:
        """The child's divergence from the teacher in nats, summed over the masked positions.

        Zero where the child is the teacher. No gradient and no dropout on the teacher's side.
        """
        if architecture == self.path:
            return logits_NV.new_zeros(())
        with without_learning(model):
            taught_NV = self._logits(model, batch)
        return divergence_sum(logits_NV, taught_NV, temperature=self.temperature)

    def _logits(self, model: SuperNet, batch: Batch) -> torch.Tensor:
        if self.predict is None:
            assert self.path is not None
            hidden_BTD = model.hidden(self.path, batch.input_ids_BT, padding_mask(batch))
            return model.predict(hidden_BTD, batch.masked_N)
        logits_BTV = self.predict(batch.input_ids_BT, batch.attention_mask_BT)
        return logits_BTV.flatten(0, 1)[batch.masked_N, : model.shape.vocab_size]


def divergence_sum(
    logits_NV: torch.Tensor, taught_NV: torch.Tensor, *, temperature: float
) -> torch.Tensor:
    """temperature² × KL(teacher ‖ child), summed over N."""
    ours_NV = F.log_softmax(logits_NV.float() / temperature, -1)
    theirs_NV = F.log_softmax(taught_NV.float() / temperature, -1)
    divergence = F.kl_div(ours_NV, theirs_NV, reduction="sum", log_target=True)
    return divergence * temperature**2
