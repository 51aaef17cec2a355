"""Resizing against plain loops in float64, and against itself under another order of summation."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources.resize import resize


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def area_average(image: np.ndarray, size: int, height: float, width: float) -> np.ndarray:
    """Each output pixel: the mean of what its rectangle covers, pixel by pixel."""
    out = np.zeros((size, size, image.shape[2]))
    for i in range(size):
        for j in range(size):
            top, bottom = i * height / size, (i + 1) * height / size
            left, right = j * width / size, (j + 1) * width / size
            area = 0.0
            for y in range(int(top), min(int(np.ceil(bottom)), image.shape[0])):
                for x in range(int(left), min(int(np.ceil(right)), image.shape[1])):
                    piece = (min(bottom, y + 1) - max(top, y)) * (min(right, x + 1) - max(left, x))
                    out[i, j] += piece * image[y, x]
                    area += piece
            out[i, j] /= area
    return out


@pytest.mark.parametrize("height, width", [(32, 32), (13, 27), (8, 8), (40, 9), (101, 67)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shrinking_is_the_average_over_each_pixels_area(height: int, width: int, channels: int) -> None:
    image = picture(height, width, channels)
    slow = area_average(image, 8, height, width)
    assert np.abs(resize(image, 8) - slow).max() <= 0.5 + 0.02  # rounding, and weights in steps of 2^-15


@pytest.mark.parametrize("height, width", [(26.5, 27.0), (26.25, 26.75), (26.125, 26.875)])
def test_a_picture_decoded_at_a_fraction_ends_where_the_original_did(height: float, width: float) -> None:
    image = picture(27, 27)
    slow = area_average(image, 8, height, width)
    assert np.abs(resize(image, 8, height, width) - slow).max() <= 0.52


def test_the_same_size_changes_nothing_and_a_flat_picture_stays_flat() -> None:
    image = picture(16, 16)
    assert (resize(image, 16) == image).all()
    for value in (0, 1, 127, 255):
        for size in (5, 16, 40):
            assert (resize(np.full((16, 23, 3), value, np.uint8), size) == value).all()


def test_enlarging_goes_through_the_pixels_it_has() -> None:
    image = picture(9, 9, 1)
    thrice = resize(image, 27)  # the middle of each block of three lies on a pixel's centre
    assert (thrice[1::3, 1::3] == image).all()


def test_enlarging_agrees_with_catmull_rom_written_as_a_loop() -> None:
    line = picture(1, 7, 1)[0, :, 0].astype(float)
    out = resize(np.repeat(line.astype(np.uint8)[None, :, None], 7, axis=0), 28)[14, :, 0]
    for i, got in enumerate(out):
        centre = (i + 0.5) / 4 - 0.5
        k = int(np.floor(centre))
        t = centre - k
        p = [line[min(max(k + tap, 0), 6)] for tap in (-1, 0, 1, 2)]
        cubic = p[1] + t / 2 * (
            p[2] - p[0] + t * (2 * p[0] - 5 * p[1] + 4 * p[2] - p[3] + t * (3 * (p[1] - p[2]) + p[3] - p[0]))
        )
        assert abs(got - min(max(cubic, 0), 255)) <= 0.52


@pytest.mark.parametrize("shape, size", [((600, 640), 32), ((1100, 37), 20), ((8, 8), 28), ((3, 1300), 16)])
def test_no_order_of_summation_can_change_a_bit(shape: tuple[int, int], size: int) -> None:
    """Whole-number arithmetic in int64 gives the same bits as the floats: nothing is lost that could be lost differently."""
    from pipeline.sources.resize import UNIT, _weights

    image = np.where(picture(*shape) > 127, 255, 0).astype(np.uint8)  # the largest sums
    down = _weights(shape[0], shape[0], size)[0].astype(np.int64)
    across = _weights(shape[1], shape[1], size)[0].astype(np.int64)
    assert (down.sum(axis=1) == UNIT).all()
    exact = np.einsum("iy,yxc,jx->ijc", down, image.astype(np.int64), across, optimize=["einsum_path", (0, 1), (0, 1)])
    exact = np.clip((exact + UNIT**2 // 2) // UNIT**2, 0, 255).astype(np.uint8)
    assert (resize(image, size) == exact).all()


def test_a_row_of_thousands_of_pixels_is_averaged_whole() -> None:
    image = np.zeros((4, 16_000, 1), np.uint8)
    image[:, 8_000:] = 200
    assert resize(image, 4)[0, :, 0].tolist() == [0, 0, 200, 200]
