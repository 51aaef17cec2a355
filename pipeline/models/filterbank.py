"""DRAW's Gaussian windows: an N x N grid of filters laid over an image, to read from it and to write onto it.

Gregor et al. 2015 (arXiv 1502.04623), equations 19-29. Images here are in row layout (B, S, C, S): rows, channels, columns.
Then both directions are two plain batched matrix products whatever the number of channels.
"""

# B batch, C channels, S side of the image, N side of the window; all pixels counted 1..S as in the equations

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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
    centre, log_variance, log_stride, log_intensity = parameters.split((2, 1, 1, 1), dim=1)
    centre = (side + 1) / 2 * (centre + 1)  # (B, 2): x, y
    stride = (side - 1) / max(count - 1, 1) * log_stride.exp()  # (B, 1)
    grid = torch.arange(1, count + 1, device=parameters.device, dtype=parameters.dtype) - count / 2 - 0.5  # (N,)
    pixels = torch.arange(1, side + 1, device=parameters.device, dtype=parameters.dtype)  # (S,)
    means = centre[:, :, None] + (grid * stride)[:, None]  # (B, 2, N)
    precision = -0.5 * (-log_variance).exp()  # (B, 1)
    exponent = (pixels - means[..., None]).square() * precision[..., None, None]  # (B, 2, N, S)
    weights = exponent.clamp(min=LOWEST_EXPONENT).exp()
    columns, rows = (weights / (weights.sum(-1, keepdim=True) + TINY)).unbind(1)  # (B, N, S) each
    return Window(rows, columns, log_intensity.exp())


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


def write_patch(patch: Tensor, window: Window, channels: int) -> Tensor:
    """1/gamma F_y^T patch F_x for each channel: (B, N * C * N) -> (B, S, C, S)."""
    batch, count, side = window.columns.shape
    patch = (patch / window.intensity).view(batch, count * channels, count)
    spread = torch.bmm(patch, window.columns).view(batch, count, channels * side)  # (B, N, C*S)
    return torch.bmm(window.rows.transpose(1, 2), spread).view(batch, side, channels, side)


def to_rows(image: Tensor) -> Tensor:
    """(B, C, S, S) -> row layout (B, S, C, S)."""
    return image.transpose(1, 2).contiguous()


def from_rows(image: Tensor) -> Tensor:
    """Row layout (..., S, C, S) -> (..., C, S, S)."""
    return image.transpose(-3, -2)
