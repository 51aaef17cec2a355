"""The LSTM cell of every recurrence here: no peepholes, gate inputs summed outside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


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
    return _Advance.apply(gates, memory)


class _Advance(torch.autograd.Function):
    """`advance` with a derivative of its own, which writes into one gate-sized tensor instead of joining a dozen."""

    @staticmethod
    def forward(ctx, gates: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        width = memory.shape[1]
        opened, update = torch.sigmoid(gates[:, : 3 * width]), torch.tanh(gates[:, 3 * width :])
        enter, stay, show = opened.split(width, dim=1)
        kept = torch.addcmul(stay * memory, enter, update)
        shown = torch.tanh(kept)
        ctx.save_for_backward(opened, update, memory, shown)
        return show * shown, kept

    @staticmethod
    @once_differentiable
    def backward(ctx, for_hidden: Tensor, for_kept: Tensor) -> tuple[Tensor, Tensor]:
        opened, update, memory, shown = ctx.saved_tensors
        width = memory.shape[1]
        enter, stay, show = opened.split(width, dim=1)
        for_shown = for_hidden * show
        for_kept = torch.addcmul(for_kept + for_shown, for_shown, shown.square(), value=-1)
        for_gates = torch.empty(len(opened), 4 * width, dtype=opened.dtype, device=opened.device)
        for_opened, for_update = for_gates[:, : 3 * width], for_gates[:, 3 * width :]
        torch.mul(for_kept, update, out=for_opened[:, :width])
        torch.mul(for_kept, memory, out=for_opened[:, width : 2 * width])
        torch.mul(for_hidden, shown, out=for_opened[:, 2 * width :])
        for_opened.mul_(opened - opened.square())
        torch.mul(for_kept * enter, 1 - update.square(), out=for_update)
        return for_gates, for_kept * stay
