from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import LapganConfig, RunConfig, from_dict, to_dict
from pipeline.models.build import build_model
from pipeline.models.lapgan import (
    FirstDiscriminator,
    FirstGenerator,
    Lapgan,
    LevelDiscriminator,
    LevelGenerator,
    uniform,
)
from pipeline.models.laplacian import enlarge


def stack(**changes: object) -> Lapgan:
    """A LAPGAN of 16 x 16 colour images whose levels do something: their last layers start at zero."""
    small = {"levels": 2, "caption": "mean", "latent": 5, "hidden": 6, "maps": 3, "language": 4}
    model = build_model(LapganConfig(**{**small, **changes}), vocabulary=7, size=16, channels=3)
    torch.manual_seed(1)
    for parameter in model.generators.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def captions(rows: int) -> tuple[Tensor, Tensor]:
    words = torch.arange(3 * rows).view(rows, 3) % 7
    return words, torch.ones_like(words, dtype=torch.bool)


# ---- noise


def test_normal_noise_becomes_uniform_and_its_mean_stays_zero() -> None:
    assert uniform(torch.zeros(2)).tolist() == [0.0, 0.0]
    quartile = 0.6744897501960817  # of the standard normal
    torch.testing.assert_close(
        uniform(torch.tensor([-quartile, quartile], dtype=torch.float64)),
        torch.tensor([-0.5, 0.5], dtype=torch.float64),
    )
    drawn = uniform(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    assert drawn.min() > -1 and drawn.max() < 1
    shares = torch.histc(drawn, 10, -1, 1) / len(drawn)
    assert (shares - 0.1).abs().max() < 0.005


# ---- the networks of a level


@pytest.mark.parametrize("size, side", [(32, 12), (28, 10)])
def test_a_discriminator_has_the_sizes_of_eyescreams(size: int, side: int) -> None:
    discriminator = LevelDiscriminator(3, size, sentence=5, maps=64)
    assert discriminator.last.in_features == 64 * side * side
    assert discriminator(torch.rand(2, 3, size, size), torch.randn(2, 5)).shape == (2,)


def test_a_generator_has_the_kernels_of_eyescreams_on_noise_sentence_and_colours() -> None:
    layers = LevelGenerator(3, 32, sentence=5, maps=64).layers
    shapes = [tuple(layer.weight.shape) for layer in layers if isinstance(layer, nn.Conv2d)]
    assert shapes == [(64, 5, 7, 7), (64, 64, 7, 7), (3, 64, 5, 5)]


@torch.no_grad()
def test_the_discriminator_is_its_formula_pixel_by_pixel() -> None:
    size, maps = 11, 2
    discriminator = LevelDiscriminator(1, size, sentence=4, maps=maps).double()
    image = torch.rand(1, 1, size, size, dtype=torch.float64)
    sentence, noise = torch.randn(1, 4).double(), torch.randn(1, *discriminator.noise_shape).double()
    weights = discriminator.state_dict()

    def convolve(planes: list, name: str, stride: int) -> list:
        weight, bias, result = weights[f"{name}.weight"], weights[f"{name}.bias"], []
        side = (len(planes[0]) - 5) // stride + 1
        for kernel, offset in zip(weight.tolist(), bias.tolist(), strict=True):
            result.append([])
            for row in range(side):
                result[-1].append([])
                for column in range(side):
                    total = offset
                    for plane, square in zip(planes, kernel, strict=True):
                        for i in range(5):
                            for j in range(5):
                                total += square[i][j] * plane[row * stride + i][column * stride + j]
                    result[-1][-1].append(max(total, 0.0))
        return result

    said = (weights["sentence.linear.weight"] @ sentence[0] + weights["sentence.linear.bias"]).clamp(min=0)
    planes = [image[0, 0].tolist(), said.view(size, size).tolist()]
    planes = convolve(convolve(planes, "layers.0", 1), "layers.2", 2)
    features = [value for plane in planes for line in plane for value in line]
    logit = weights["last.bias"].item()
    kept = weights["last.bias"].item()
    for value, weight, chance in zip(features, weights["last.weight"][0].tolist(), noise[0].tolist(), strict=True):
        logit += weight * value
        kept += weight * value * (2 if chance > 0 else 0)
    assert discriminator(image, sentence).item() == pytest.approx(logit, rel=1e-9)
    assert discriminator(image, sentence, noise).item() == pytest.approx(kept, rel=1e-9)


@torch.no_grad()
def test_the_smallest_level_is_its_formulas() -> None:
    generator, discriminator = FirstGenerator(3, 4, 5, 6, 7).double(), FirstDiscriminator(3, 4, 5, 7).double()
    noise, sentence = torch.randn(6).double(), torch.randn(5).double()
    hidden = torch.cat((torch.erf(noise / math.sqrt(2)), sentence))
    for index in (0, 2, 4):
        layer = generator.layers[index]
        hidden = torch.stack([row @ hidden for row in layer.weight]) + layer.bias
        hidden = hidden.clamp(min=0) if index < 4 else 1 / (1 + (-hidden).exp())
    image = generator(noise[None], torch.zeros(1, 3, 4, 4).double(), sentence[None])
    torch.testing.assert_close(image[0].flatten(), hidden)

    chances = torch.randn(14).double()
    seen = torch.cat((image[0].flatten(), sentence))
    for layer, half in ((discriminator.first, chances[:7]), (discriminator.second, chances[7:])):
        seen = torch.where(half > 0, 2 * (layer.weight @ seen + layer.bias).clamp(min=0), 0)
    logit = (discriminator.last.weight @ seen + discriminator.last.bias).item()
    assert discriminator(image, sentence[None], chances[None]).item() == pytest.approx(logit)


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: LevelDiscriminator(1, 12, 3, 4), lambda: FirstDiscriminator(1, 12, 3, 8)])
def test_dropout_is_handed_in(make) -> None:
    discriminator = make()
    image, sentence = torch.rand(1, 1, 12, 12), torch.randn(1, 3)
    noise = torch.randn(2, 1, *discriminator.noise_shape)
    first = discriminator(image, sentence, noise[0])
    assert torch.equal(first, discriminator(image, sentence, noise[0]))
    assert not torch.equal(first, discriminator(image, sentence, noise[1]))
    assert torch.equal(discriminator(image, sentence), discriminator(image, sentence))


def test_an_image_too_small_for_two_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="side 8 is too small for a level: two 5x5 windows need 9 pixels"):
        LevelDiscriminator(1, 8, 3, 2)


# ---- the stack


@torch.no_grad()
def test_a_drawing_is_the_first_image_and_the_detail_of_each_level_on_it() -> None:
    model = stack(levels=3)
    words, keep = captions(2)
    noise = torch.randn(2, *model.noise_shape)
    assert model.sizes == (4, 8, 16)
    assert model.noise_shape == (5 + 8 * 8 + 16 * 16,)
    sentence = model.describe(words, keep, None)
    first, second, third = model.generators
    image = first(noise[:, :5], None, sentence)
    image = second(noise[:, 5:69].view(2, 1, 8, 8), enlarge(image, 8), sentence).clamp(0, 1)
    image = third(noise[:, 69:].view(2, 1, 16, 16), enlarge(image, 16), sentence).clamp(0, 1)
    drawn = model.sample(words, keep, None, noise).images
    torch.testing.assert_close(drawn, image, rtol=0, atol=0)
    assert drawn.shape == (2, 3, 16, 16) and drawn.min() >= 0 and drawn.max() <= 1


@torch.no_grad()
def test_a_drawing_depends_on_its_caption_and_its_noise_and_not_on_its_company() -> None:
    model = stack()
    words, keep = captions(3)
    noise = torch.randn(3, *model.noise_shape)
    drawn = model.sample(words, keep, None, noise).images
    alone = model.sample(words[1:2], keep[1:2], None, noise[1:2]).images
    torch.testing.assert_close(alone[0], drawn[1], rtol=0, atol=1e-4)
    assert not torch.allclose(model.sample(words.roll(1, 0), keep, None, noise).images, drawn)
    assert not torch.allclose(model.sample(words, keep, None, -noise).images, drawn)


@torch.no_grad()
def test_sentence_vectors_are_taken_as_they_are_given() -> None:
    model = stack(caption="skipthought", sentence=9)
    words, keep = captions(2)
    vectors, noise = torch.randn(2, 9), torch.randn(2, *model.noise_shape)
    assert model.sentence_width == 9
    assert torch.equal(model.describe(words, keep, vectors), vectors)
    assert torch.equal(
        model.sample(words, keep, vectors, noise).images, model.sample(words.flip(0), keep, vectors, noise).images
    )
    with pytest.raises(ValueError, match="draws from sentence vectors"):
        model.sample(words, keep, None, noise)


def test_random_word_states_tell_captions_apart_and_are_not_trained() -> None:
    model = stack(language=32)
    words = torch.cartesian_prod(*[torch.arange(7)] * 3)
    vectors = model.describe(words, torch.ones_like(words, dtype=torch.bool), None)
    assert not any(parameter.requires_grad for parameter in model.sentence.parameters())
    apart = torch.cdist(vectors, vectors) + torch.eye(len(vectors))
    assert apart.min() > 1e-3  # also of captions with the same words in another order


def test_there_is_no_bound() -> None:
    with pytest.raises(NotImplementedError):
        stack().terms(None, None)


def test_the_config_survives_the_checkpoint() -> None:
    run = RunConfig(name="a", model=LapganConfig(levels=3, maps=5))
    assert from_dict(RunConfig, to_dict(run)) == run
