"""DRAW's Gaussian windows: an N x N grid of filters laid over an image, to read from it and to write onto it.

Gregor et al. 2015 (arXiv 1502.04623), equations 19-29. Images here are in row layout (B, S, C, S): rows, channels, columns.
Then both directions are two plain batched matrix products whatever the number of channels.
"""

# B batch, C channels, S side of the image, N side of the window; all pixels counted 1..S as in the equations

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOWEST_EXPONENT = (
    -60.0
)  # e^-60 still is a normal float32; smaller ones are denormal, and those cost a hundred times as much
TINY = 1e-4  # the authors' guard of the rows' normalisation, for windows that lie off the image


class Window(NamedTuple):
    """Filters of one window."""

    rows: Tensor  # (B, N, S) F_y, each of the N filters sums to 1
    columns: Tensor  # (B, N, S) F_x
    intensity: Tensor  # (B, 1) gamma


def make_window(parameters: Tensor, count: int, side: int) -> Window:
    """(B, 5) as (g~x, g~y, log sigma^2, log delta, log gamma) -> the window's filters.

        g = (S + 1) / 2 (g~ + 1),  delta = (S - 1) / (N - 1) exp(log delta),  mu_i = g + (i - N / 2 - 1/2) delta,  i = 1..N
        F[i, a] = exp(-(a - mu_i)^2 / 2 sigma^2) / sum over a

    Choice: i and a count from 1 as in the equations, so the grid is centred on g; the authors' code counts from 0 with an
    integer N / 2, which shifts it by half a stride (N = 9) or a whole one (N = 8).
    """
    columns, rows = _Filters.apply(parameters[:, :4], count, side).unbind(1)
    return Window(rows, columns, parameters[:, 4:].exp())


class _Filters(torch.autograd.Function):
    """(B, 4) -> (B, 2, N, S): the filters over columns and over rows, with a derivative of its own.

    Autograd would run three dozen small operations a window here, 2T windows a training step; most of them can be had from
    the filters themselves, since dF / d exponent is that of a softmax.
    """

    @staticmethod
    def forward(ctx, parameters: Tensor, count: int, side: int) -> Tensor:
        centre, log_variance, log_stride = parameters.split((2, 1, 1), dim=1)
        like = {"device": parameters.device, "dtype": parameters.dtype}
        grid = torch.arange(1, count + 1, **like) - (count / 2 + 0.5)  # (N,)
        stride = (side - 1) / max(count - 1, 1) * log_stride.exp()  # (B, 1)
        means = ((side + 1) / 2 * (centre + 1))[:, :, None] + (stride * grid)[:, None]  # (B, 2, N)
        distance = torch.arange(1, side + 1, **like) - means[..., None]  # (B, 2, N, S)
        precision = (-0.5 * (-log_variance).exp())[..., None, None]  # (B, 1, 1, 1)
        weights = distance.square().mul_(precision).clamp_(min=LOWEST_EXPONENT).exp_()
        filters = weights.div_(weights.sum(-1, keepdim=True).add_(TINY))
        ctx.save_for_backward(filters, distance, precision, stride, grid)
        ctx.side = side
        return filters

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        filters, distance, precision, stride, grid = ctx.saved_tensors
        scaled = gradient * filters
        scaled.sub_(filters * scaled.sum(-1, keepdim=True)).mul_(distance)  # d exponent, times the distance
        for_means = -2 * precision[..., 0] * scaled.sum(-1)  # (B, 2, N)
        for_centre = (ctx.side + 1) / 2 * for_means.sum(-1)  # (B, 2)
        for_stride = (for_means.sum(1) * grid).sum(1, keepdim=True) * stride
        for_variance = -precision[:, 0, 0] * torch.linalg.vecdot(scaled.flatten(1), distance.flatten(1))[:, None]
        return torch.cat((for_centre, for_variance, for_stride), dim=1), None, None


def read_patch(image: Tensor, window: Window) -> Tensor:
    """gamma F_y image F_x^T for each channel: (B, S, C, S) -> (B, N, C, N)."""
    batch, side, channels, _ = image.shape
    count = window.rows.shape[1]
    picked = torch.bmm(window.rows, image.reshape(batch, side, channels * side))  # (B, N, C*S)
    patch = torch.bmm(picked.view(batch, count * channels, side), window.columns.transpose(1, 2))  # (B, N*C, N)
    return patch.view(batch, count, channels, count) * window.intensity[..., None, None]


def join_channels(*patches: Tensor) -> Tensor:
    """Patches (B, N, C, N) of the same window -> (B, N * sum of C * N)."""
    return torch.cat(patches, dim=2).flatten(1)


def write_patch(canvas: Tensor, patch: Tensor, window: Window) -> Tensor:
    """canvas + 1/gamma F_y^T patch F_x for each channel: (B, S, C, S), (B, N * C * N) -> (B, S, C, S).

    The patch may be a slice of a far larger tensor, all of which would be kept for the derivative: so it is copied.
    """
    batch, side, channels, _ = canvas.shape
    count = window.columns.shape[1]
    patch = (patch.contiguous() / window.intensity).view(batch, count * channels, count)
    spread = torch.bmm(patch, window.columns).view(batch, count, channels * side)  # (B, N, C*S)
    return torch.baddbmm(canvas.flatten(2), window.rows.transpose(1, 2), spread).view(batch, side, channels, side)


def to_rows(image: Tensor) -> Tensor:
    """(B, C, S, S) -> row layout (B, S, C, S)."""
    return image.transpose(1, 2).contiguous()


def from_rows(image: Tensor) -> Tensor:
    """Row layout (..., S, C, S) -> (..., C, S, S)."""
    return image.transpose(-3, -2)
