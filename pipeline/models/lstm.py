"""The LSTM cell of every recurrence here: no peepholes, gate inputs summed outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LSTMCell(nn.Module):
    """One LSTM step (Hochreiter & Schmidhuber 1997, with forget gate).

        i, f, o, g = gates + R h + b;   c' = sigmoid(f) c + sigmoid(i) tanh(g);   h' = sigmoid(o) tanh(c')

    The caller sums whatever enters the gates, so that inputs which do not change over the steps are multiplied once.
    """

    def __init__(self, width: int):
        super().__init__()
        self.recurrent = nn.Linear(width, 4 * width)  # its bias is the gates'
        self.width = width

    def forward(self, gates: Tensor, hidden: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """gates (B, 4L), hidden, memory (B, L) -> hidden, memory (B, L)."""
        return advance(gates + self.recurrent(hidden), memory)


def advance(gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Complete gate pre-activations (B, 4L) in the order i, f, o, g; memory (B, L) -> hidden, memory (B, L)."""
    width = memory.shape[1]
    opened, update = gates.split((3 * width, width), dim=1)
    enter, stay, show = torch.sigmoid(opened).chunk(3, dim=1)
    memory = stay * memory + enter * torch.tanh(update)
    return show * torch.tanh(memory), memory
