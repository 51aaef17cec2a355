from __future__ import annotations

import math

import pytest
import torch

from pipeline.models.sharpener import MARGIN, Sharpener


def trained_by_nobody(channels: int = 1, size: int = 12, seed: int = 0) -> Sharpener:
    """A sharpener with a residual of some size: its last layer starts at zero."""
    torch.manual_seed(seed)
    sharpener = Sharpener(channels, size, sentence=5, maps=3)
    for parameter in sharpener.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return sharpener


@torch.no_grad()
def test_a_new_sharpener_changes_nothing() -> None:
    drawing = torch.rand(3, 3, 10, 10)
    torch.testing.assert_close(Sharpener(3, 10, 5, 4)(drawing, torch.randn(3, 5)), drawing, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_the_papers_formula_pixel_by_pixel(channels: int) -> None:
    size, sharpener = 9, trained_by_nobody(channels, 9).double()
    drawing = torch.rand(2, channels, size, size, dtype=torch.float64)
    sentence = torch.randn(2, 5, dtype=torch.float64)
    parameters = dict(sharpener.generator.named_parameters())

    def convolve(image: list, weight: torch.Tensor, bias: torch.Tensor) -> list:
        """Cross-correlation with zeros outside, as nested loops over a list of channels, each {(row, column): value}."""
        reach = weight.shape[-1] // 2
        result = []
        for kernel, offset in zip(weight.tolist(), bias.tolist(), strict=True):
            sums = {}
            for row in range(size):
                for column in range(size):
                    total = offset
                    for channel, plane in zip(image, kernel, strict=True):
                        for i, line in enumerate(plane):
                            for j, factor in enumerate(line):
                                total += factor * channel.get((row + i - reach, column + j - reach), 0.0)
                    sums[row, column] = total
            result.append(sums)
        return result

    def pixels(plane: torch.Tensor) -> dict:
        return {(row, column): float(plane[row, column]) for row in range(size) for column in range(size)}

    def positive(image: list) -> list:
        return [{place: max(value, 0.0) for place, value in channel.items()} for channel in image]

    for row in range(2):
        said = parameters["sentence.linear.weight"] @ sentence[row] + parameters["sentence.linear.bias"]
        layers = [pixels(torch.zeros(size, size)), *positive([pixels(said.view(size, size))])]
        layers += [pixels(plane) for plane in drawing[row]]
        for index in (0, 2, 4):
            layers = convolve(layers, parameters[f"layers.{index}.weight"], parameters[f"layers.{index}.bias"])
            layers = positive(layers) if index < 4 else layers
        sharp = sharpener(drawing[row : row + 1], sentence[row : row + 1])[0]
        for channel in range(channels):
            for (i, j), residual in layers[channel].items():
                expected = min(max(float(drawing[row, channel, i, j]) + residual, 0.0), 1.0)
                assert math.isclose(float(sharp[channel, i, j]), expected, rel_tol=1e-9, abs_tol=1e-9)


@torch.no_grad()
def test_the_same_drawing_is_always_sharpened_alike_alone_or_in_company() -> None:
    sharpener = trained_by_nobody()
    drawing, sentence = torch.rand(4, 1, 12, 12), torch.randn(4, 5)
    together = sharpener(drawing, sentence)
    torch.testing.assert_close(together, sharpener(drawing, sentence), rtol=0, atol=0)
    for row in range(4):
        alone = sharpener(drawing[row : row + 1], sentence[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_caption_matters() -> None:
    sharpener, drawing = trained_by_nobody(), torch.full((1, 1, 12, 12), 0.5)
    assert not torch.equal(sharpener(drawing, torch.ones(1, 5)), sharpener(drawing, -torch.ones(1, 5)))


@torch.no_grad()
def test_the_noise_of_the_generator_varies_the_image_around_what_is_used() -> None:
    sharpener = trained_by_nobody()
    drawing, sentence = torch.full((1, 1, 12, 12), 0.5), torch.zeros(1, 5)
    zero = sharpener.generator(torch.zeros(1, 1, 12, 12), drawing, sentence)
    assert torch.equal(sharpener(drawing, sentence), zero.clamp(0, 1))
    assert not torch.equal(sharpener.generator(torch.randn(1, 1, 12, 12), drawing, sentence), zero)


@torch.no_grad()
def test_the_bound_after_sharpening_is_finite_whatever_the_sharpener_says() -> None:
    sharpener = trained_by_nobody()
    sharpener.generator.layers[-1].weight.mul_(1000)  # every pixel is clipped to 0 or 1
    drawing, sentence = torch.rand(3, 1, 12, 12), torch.randn(3, 5)
    hard = sharpener(drawing, sentence)
    assert set(hard.unique().tolist()) <= {0.0, 1.0}
    mean = sharpener.mean(drawing, sentence)
    assert mean.min() >= MARGIN and mean.max() <= 1 - MARGIN
    worst = torch.nn.functional.binary_cross_entropy(mean, 1 - hard, reduction="none")
    torch.testing.assert_close(worst, torch.full_like(worst, -math.log(MARGIN)), rtol=1e-4, atol=0)
    assert torch.equal((mean * 255).round(), (hard * 255).round())  # no 8-bit picture shows the difference
