from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models.laplacian import enlarge, pyramid_sizes, scales, shrink


@pytest.mark.parametrize("size, levels", [(32, 1), (32, 2), (60, 3), (33, 4), (7, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pyramid_gives_back_every_pixel_value(size: int, levels: int, channels: int) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, channels, size, size), dtype=np.uint8))
    scaled = scales(pixels.float() / 255, pyramid_sizes(size, levels))
    assert len(scaled) == levels
    again = scaled[0]
    for coarse, fine in zip(scaled, scaled[1:]):
        residual = fine - enlarge(coarse, fine.shape[-1])
        again = enlarge(again, fine.shape[-1]) + residual
    assert torch.equal((again * 255).round().to(torch.uint8), pixels)
    assert (again - pixels.float() / 255).abs().max() <= 2**-23 * levels  # a rounding a level, no more


def test_shrinking_by_two_is_the_mean_of_four_pixels() -> None:
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    slow = [
        [image[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].sum((2, 3)) / 4 for column in range(3)]
        for row in range(3)
    ]
    torch.testing.assert_close(shrink(image, 3), torch.stack([torch.stack(row, -1) for row in slow], -2))


def test_a_flat_image_has_no_residual() -> None:
    scaled = scales(torch.full((1, 3, 20, 20), 0.25), pyramid_sizes(20, 3))
    assert torch.equal(scaled[0], torch.full((1, 3, 5, 5), 0.25))
    assert all(torch.equal(enlarge(coarse, fine.shape[-1]), fine) for coarse, fine in zip(scaled, scaled[1:]))


def test_enlarging_is_linear_between_the_centres_of_pixels() -> None:
    ramp = torch.arange(4.0, dtype=torch.float64).expand(1, 1, 4, 4)
    places = (torch.arange(8, dtype=torch.float64) + 0.5) / 2 - 0.5  # a fine pixel's centre in coarse pixels
    torch.testing.assert_close(enlarge(ramp, 8)[0, 0, 3], places.clamp(0, 3))


def test_sizes_are_halves_rounded_up() -> None:
    assert pyramid_sizes(60, 3) == (15, 30, 60)
    assert pyramid_sizes(33, 3) == (9, 17, 33)
    with pytest.raises(ValueError, match="one pixel is left"):
        pyramid_sizes(4, 4)
