"""An operator as a user writes one: it builds on ours, in a file of its own."""

import torch
from torch import nn

from supernet.operators import FeedForward


class Gate(nn.Module):
    """Scales a feed-forward operator's output per feature, after one of its own per token."""

    def __init__(self, *, hidden_size, dropout, inner_size=8):
        super().__init__()
        self.inner = FeedForward(hidden_size=hidden_size, dropout=dropout, inner_size=inner_size)
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.register_buffer("scale", torch.full((hidden_size,), 0.5))

    def forward(self, hidden_BTD, mask_BT):
        return self.inner(hidden_BTD, mask_BT) * self.scale * torch.sigmoid(self.gate(hidden_BTD))

    def flops(self, length):
        return self.inner.flops(length) + 2 * length * self.gate.weight.numel()
