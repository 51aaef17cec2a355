"""Structural similarity against Wang's formula, window by window."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.ssi import similarity


def slow(a: np.ndarray, b: np.ndarray) -> float:
    """One channel (H, W): the mean over all whole 11x11 Gaussian windows (sigma 1.5, K1 0.01, K2 0.03, range 1)."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(5, a.shape[0] - 5):
        for column in range(5, a.shape[1] - 5):
            x, y = (image[row - 5 : row + 6, column - 5 : column + 6] for image in (a, b))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * x**2).sum() - mean_x**2, (weights * y**2).sum() - mean_y**2
            both = (weights * x * y).sum() - mean_x * mean_y
            values.append(
                (2 * mean_x * mean_y + 1e-4)
                * (2 * both + 9e-4)
                / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4))
            )
    return float(np.mean(values))


def test_similarity_is_wangs_formula_averaged_over_channels() -> None:
    generator = np.random.default_rng(0)
    image = generator.random((3, 16, 14))
    drawing = np.clip(image + 0.3 * generator.normal(size=image.shape), 0, 1)
    expected = np.mean([slow(a, b) for a, b in zip(drawing, image, strict=True)])
    assert similarity(drawing, image) == pytest.approx(expected, abs=1e-9)


def test_an_image_is_like_itself_and_unlike_its_negative() -> None:
    image = np.random.default_rng(1).random((1, 20, 20)).astype(np.float32)
    assert similarity(image, image) == pytest.approx(1)
    assert similarity(1 - image, image) < 0


def test_images_smaller_than_the_window_are_refused() -> None:
    with pytest.raises(ValueError, match="10x10 are smaller than the 11x11 window"):
        similarity(np.zeros((1, 10, 10)), np.zeros((1, 10, 10)))
