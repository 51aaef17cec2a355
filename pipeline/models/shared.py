"""A matrix that many steps multiply by, whose gradient is one product over all steps instead of a sum of one a step.

Backpropagation through time visits a step's product T times; each visit would make a gradient the size of the matrix and add
it to the others. Here a visit only keeps its two thin factors, and the matrix's own turn, which comes after all visits,
multiplies them stacked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Shared:
    """Multiplies by a weight (out, in) any number of times within one forward pass."""

    def __init__(self, weight: Tensor):
        self.factors: list[tuple[Tensor, Tensor]] = []
        self.weight = _Weight.apply(weight, self.factors)

    def add(self, start: Tensor, x: Tensor) -> Tensor:
        """start (B, out) or (out,), x (B, in) -> start + x weight^T (B, out)."""
        return _Product.apply(start, x, self.weight, self.factors)


class _Weight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, factors: list) -> Tensor:
        ctx.factors = factors
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, none: None) -> tuple[Tensor | None, None]:
        """Runs once every product has run, since each of them is a function of this one's result."""
        gradients, inputs = zip(*ctx.factors, strict=True)
        ctx.factors.clear()
        return torch.cat(gradients).t() @ torch.cat(inputs), None


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, start: Tensor, x: Tensor, weight: Tensor, factors: list) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.factors, ctx.row = factors, start.dim() == 1
        return torch.addmm(start, x, weight.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        ctx.factors.append((gradient, x))
        return gradient.sum(0) if ctx.row else gradient, gradient @ weight, None, None
