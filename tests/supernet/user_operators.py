"""An operator as a user writes one, for the tests."""

import torch
from torch import nn


class GatedUnit(nn.Module):
    """A gated linear unit per token, without biases."""

    def __init__(self, *, hidden_size, dropout, scale=1.0):
        super().__init__()
        self.scale = scale
        self.value = nn.Linear(hidden_size, hidden_size, bias=False)
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, hidden_BTD, mask_BT):
        gate_BTD = torch.sigmoid(self.gate(hidden_BTD))
        return hidden_BTD + self.scale * gate_BTD * self.value(hidden_BTD)

    def flops(self, length):
        return 2 * length * 2 * self.value.in_features**2


class NoFlops(nn.Module):
    """Not an operator: it does not say what it costs."""
