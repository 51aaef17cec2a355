"""The windows against the equations written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.models.filterbank import from_rows, make_window, read_patch, to_rows, write_patch


def slow_filter(centre: float, stride: float, variance: float, count: int, side: int) -> list[list[float]]:
    rows = []
    for i in range(1, count + 1):
        mean = centre + (i - count / 2 - 0.5) * stride
        row = [math.exp(max(-((a - mean) ** 2) / (2 * variance), -60)) for a in range(1, side + 1)]
        rows.append([value / (sum(row) + 1e-4) for value in row])
    return rows


@pytest.mark.parametrize(("count", "side"), [(3, 9), (8, 60), (1, 5)])
def test_filters_equal_the_loop(count, side):
    parameters = torch.tensor([[0.3, -0.2, 0.1, -0.5, 0.4], [5.0, -7.0, -3.0, 0.0, -1.0]], dtype=torch.float64)
    window = make_window(parameters, count, side)
    for row, (gx, gy, log_variance, log_stride, log_gamma) in enumerate(parameters.tolist()):
        stride = (side - 1) / max(count - 1, 1) * math.exp(log_stride)
        for filters, g in ((window.columns, gx), (window.rows, gy)):
            slow = slow_filter((side + 1) / 2 * (g + 1), stride, math.exp(log_variance), count, side)
            torch.testing.assert_close(filters[row], torch.tensor(slow, dtype=torch.float64))
        assert window.intensity[row].item() == pytest.approx(math.exp(log_gamma))


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_a_window_with_centre_zero_is_symmetric_about_the_middle_of_the_image(count):
    window = make_window(torch.zeros(1, 5), count, 12)
    torch.testing.assert_close(window.rows, window.rows.flip((1, 2)))


def test_a_narrow_window_of_full_stride_reads_the_image_itself():
    image = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    parameters = torch.tensor([[0.0, 0.0, -8.0, 0.0, 0.0]] * 2, dtype=torch.float64)  # sigma 0.02, stride 1, gamma 1
    window = make_window(parameters, 6, 6)
    patch = read_patch(to_rows(image), window)
    torch.testing.assert_close(patch, to_rows(image), rtol=2e-4, atol=2e-4)
    back = write_patch(torch.zeros_like(patch), patch.flatten(1), window)
    torch.testing.assert_close(from_rows(back), image, rtol=4e-4, atol=4e-4)


def test_reading_and_writing_equal_three_matrix_products_a_channel():
    random = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 7, 7, generator=random, dtype=torch.float64)
    window = make_window(torch.randn(2, 5, generator=random, dtype=torch.float64), 4, 7)
    patch = read_patch(to_rows(image), window)
    painted = from_rows(write_patch(to_rows(image), patch.flatten(1), window))
    for b in range(2):
        rows, columns, gamma = window.rows[b], window.columns[b], window.intensity[b]
        for c in range(3):
            torch.testing.assert_close(patch[b, :, c], gamma * rows @ image[b, c] @ columns.T)
            torch.testing.assert_close(painted[b, c], image[b, c] + rows.T @ patch[b, :, c] @ columns / gamma)


def test_filters_far_off_the_image_are_finite_and_have_no_denormal_weights():
    parameters = torch.tensor([[40.0, -40.0, -2.0, 0.0, 0.0]], requires_grad=True)
    window = make_window(parameters, 5, 20)
    window.rows.sum().backward()
    assert torch.isfinite(parameters.grad).all()
    smallest = torch.cat((window.rows.flatten(), window.columns.flatten())).abs()
    assert (smallest[smallest > 0] >= torch.finfo(torch.float32).tiny).all()
