"""Resizing that gives the same bits on every machine: area average when shrinking, cubic when enlarging.

The bytes of a shard must depend on the source alone, but OpenCV's and Pillow's floats round differently with the processor's
instructions. Here both passes multiply by whole-number weights and stay below the size where a float stops being exact
(2^24 in float32, 2^53 in float64), so no order of summation and no fused instruction can change a result.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

UNIT = 2**15  # a row of weights sums to this; cubic rows reach 1.5 x in absolute value: 1.5 x 2^15 x 255 < 2^24
ROWS_AT_ONCE = 512  # bounds the float copy of a large picture


def resize(image: np.ndarray, size: int, height: float | None = None, width: float | None = None) -> np.ndarray:
    """(h, w, C) uint8 -> (size, size, C) uint8, the whole picture, its aspect ratio not kept.

    A picture decoded at a fraction of its size has pixels that reach over the true edge when that does not divide;
    height and width say where the true edge lies, in pixels of `image` (427 rows at half size are 213.5 of 214).
    """
    h, w, channels = image.shape
    down = _weights(h, h if height is None else height, size)
    across = _weights(w, w if width is None else width, size).astype(np.float64)
    rows = np.zeros((size, w * channels), np.float32)
    for start in range(0, h, ROWS_AT_ONCE):
        part = image[start : start + ROWS_AT_ONCE].reshape(-1, w * channels).astype(np.float32)
        rows += down[:, start : start + ROWS_AT_ONCE] @ part
    small = across @ rows.reshape(size, w, channels).astype(np.float64)  # (size, size, C), times UNIT squared
    return np.clip(np.floor(small / UNIT**2 + 0.5), 0, 255).astype(np.uint8)


@lru_cache(maxsize=64)
def _weights(pixels: int, extent: float, size: int) -> np.ndarray:
    """(size, pixels) float32 of whole numbers: what each pixel, 1 wide, from 0 to extent, gives to each of `size` outputs."""
    share = _cubic(pixels, size) if extent < size else _area(pixels, extent, size)
    # rounding the running sum keeps the row's sum exact
    running = np.rint(np.cumsum(share, axis=1) / share.sum(axis=1, keepdims=True) * UNIT)
    return np.diff(running, axis=1, prepend=0).astype(np.float32)


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
