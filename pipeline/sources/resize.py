"""Resizing that gives the same bits on every machine: area average when shrinking, cubic when enlarging.

The bytes of a shard must depend on the source alone, but OpenCV's and Pillow's floats round differently with the processor's
instructions. Here both passes multiply by whole-number weights and stay below the size where a float stops being exact
(2^24 in float32, 2^53 in float64), so no order of summation and no fused instruction can change a result.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

UNIT = 2**15  # a row of weights sums to this; cubic rows reach 1.5 x in absolute value: 1.5 x 2^15 x 255 < 2^24
GROUP = 4  # output rows computed at once


def resize(image: np.ndarray, size: int, height: float | None = None, width: float | None = None) -> np.ndarray:
    """(h, w, C) uint8 -> (size, size, C) uint8, the whole picture, its aspect ratio not kept.

    A picture decoded at a fraction of its size has pixels that reach over the true edge when that does not divide;
    height and width say where the true edge lies, in pixels of `image` (427 rows at half size are 213.5 of 214).
    """
    h, w, channels = image.shape
    down, spans = _weights(h, h if height is None else height, size)
    across, _ = _weights(w, w if width is None else width, size)
    rows = np.empty((size, w * channels), np.float32)
    for first, top, bottom in spans:  # a few output rows at a time see only the input rows that they cover
        part = image[top:bottom].reshape(bottom - top, w * channels).astype(np.float32)
        np.matmul(down[first : first + GROUP, top:bottom], part, out=rows[first : first + GROUP])
    small = across.astype(np.float64) @ rows.reshape(size, w, channels).astype(np.float64)  # times UNIT squared
    return np.clip(np.floor(small / UNIT**2 + 0.5), 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _weights(pixels: int, extent: float, size: int) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """What each pixel, 1 wide, from 0 to extent, gives to each output: (size, pixels) float32 of whole numbers.

    With it, for each GROUP of outputs: the first of them, and first and last + 1 of the pixels that give anything to them.
    """
    share = _cubic(pixels, size) if extent < size else _area(pixels, extent, size)
    # rounding the running sum keeps the row's sum exact
    running = np.rint(np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True) * UNIT)
    weights = np.diff(running, axis=1, prepend=0).astype(np.float32)
    spans = []
    for first in range(0, size, GROUP):
        (given,) = weights[first : first + GROUP].any(axis=0).nonzero()
        spans.append((first, int(given[0]), int(given[-1]) + 1))
    return weights, spans


def _area(pixels: int, extent: float, size: int) -> np.ndarray:
    """Overlap of output i, extent / size wide, with each pixel."""
    outer = np.arange(size + 1)[:, None] * (extent / size)
    inner = np.minimum(np.arange(pixels + 1), extent)[None]
    overlap = np.minimum(outer[1:], inner[:, 1:]) - np.maximum(outer[:-1], inner[:, :-1])
    return np.maximum(overlap, 0)


def _cubic(pixels: int, size: int) -> np.ndarray:
    """Catmull-Rom interpolation at the centres of the outputs; beyond the edge lies the edge's value."""
    centre = (np.arange(size) + 0.5) * pixels / size - 0.5
    share = np.zeros((size, pixels))
    for tap in range(-1, 3):
        at = np.floor(centre) + tap
        t = np.abs(centre - at)
        value = np.where(t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
        np.add.at(share, (np.arange(size), np.clip(at, 0, pixels - 1).astype(int)), value)
    return share
