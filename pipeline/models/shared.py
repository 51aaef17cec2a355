"""A matrix that many steps multiply by, whose gradient is a few products over many steps instead of a sum of one a step.

Backpropagation through time visits a step's product T times; each visit would make a gradient the size of the matrix and add
it to the others. Here a visit only keeps its two thin factors; those of FOLD visits are multiplied stacked, and the matrix's
own turn, which comes after all visits, adds what is left.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FOLD = 8  # more saves passes over the gradient, fewer saves memory


class Shared:
    """Multiplies by a weight (out, in) any number of times within one forward pass."""

    def __init__(self, weight: Tensor):
        self.visits = _Visits()
        self.weight = _Weight.apply(weight, self.visits)

    def add(self, start: Tensor, x: Tensor) -> Tensor:
        """start (B, out) or (out,), x (B, in) -> start + x weight^T (B, out)."""
        return _Product.apply(start, x, self.weight, self.visits)


class _Visits:
    """What backpropagation has seen so far of one matrix: factors of its gradient, and the sum of those multiplied."""

    def __init__(self) -> None:
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.total: Tensor | None = None

    def keep(self, gradient: Tensor, x: Tensor) -> None:
        """gradient (B, out), x (B, in) of one product."""
        self.factors.append((gradient, x))
        if len(self.factors) == FOLD:
            self._fold()

    def take(self) -> Tensor:
        """The gradient (out, in); a second backward pass through the same graph starts anew."""
        if self.factors:
            self._fold()
        total, self.total = self.total, None
        return total

    def _fold(self) -> None:
        gradients, inputs = (torch.cat(parts) for parts in zip(*self.factors, strict=True))
        self.factors.clear()
        if self.total is None:
            self.total = gradients.t() @ inputs
        else:
            self.total.addmm_(gradients.t(), inputs)


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, visits: _Visits) -> Tensor:
        ctx.visits = visits
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, none: None) -> tuple[Tensor | None, None]:
        """Runs once every product has run, since each of them is a function of this one's result."""
        return ctx.visits.take(), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor, x: Tensor, weight: Tensor, visits: _Visits) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.visits, ctx.row = visits, start.dim() == 1
        return torch.addmm(start, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.visits.keep(gradient, x)
        return gradient.sum(0) if ctx.row else gradient, gradient @ weight, None, None
