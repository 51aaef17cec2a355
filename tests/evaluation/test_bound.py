"""The bound and the figures beside it, against sums written as loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.evaluation.bound import bernoulli_cost, entropy_floor, flat_cost, image_bounds
from pipeline.models.base import CaptionModel
from pipeline.sample import Batch, Terms

IMAGES = torch.rand((3, 2, 4, 5), generator=torch.Generator().manual_seed(0))
IMAGES[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # where the logarithms need care


def cost(x: float, mean: float) -> float:
    """-log of Bernoulli(mean) at x, one pixel."""
    return -(x * math.log(mean) if x else 0.0) - ((1 - x) * math.log(1 - mean) if x < 1 else 0.0)


def summed(image: Tensor, means: Tensor) -> float:
    return sum(cost(x, mean) for x, mean in zip(image.flatten().tolist(), means.flatten().tolist(), strict=True))


def test_costs_are_sums_over_pixels() -> None:
    means = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    expected = [summed(image, mean) for image, mean in zip(IMAGES, means, strict=True)]
    assert bernoulli_cost(means, IMAGES).tolist() == pytest.approx(expected, rel=1e-5)
    assert entropy_floor(IMAGES).tolist() == pytest.approx([summed(image, image) for image in IMAGES], rel=1e-5)


def test_the_flat_cost_paints_each_channel_of_each_image_in_its_mean() -> None:
    expected = [sum(summed(channel, channel.mean().expand(4, 5)) for channel in image) for image in IMAGES]
    assert flat_cost(IMAGES).tolist() == pytest.approx(expected, rel=1e-5)


def test_no_means_cost_less_than_the_floor() -> None:
    for seed in range(20):
        means = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(seed)) * 0.98 + 0.01
        assert (bernoulli_cost(means, IMAGES) >= entropy_floor(IMAGES)).all()
    assert (flat_cost(IMAGES) >= entropy_floor(IMAGES)).all()


class Fixed(CaptionModel):
    """Reconstructs every image as its blend with noise, at a KL of its caption's length."""

    noise_shape = (2, 4, 5)

    def __init__(self, bernoulli: bool = True, kl: float = 1.0) -> None:
        super().__init__()
        self.bernoulli, self.kl = bernoulli, kl

    def reconstruct(self, batch: Batch, noise: Tensor) -> tuple[Terms, Tensor]:
        drawn = 0.7 * batch.images + 0.3 * torch.sigmoid(noise)
        recon = (
            bernoulli_cost(drawn, batch.images) if self.bernoulli else (drawn - batch.images).square().sum((1, 2, 3))
        )
        return Terms({"recon": recon, "kl": self.kl * batch.keep.sum(1).float()}), drawn

    def describe(self, words: Tensor, keep: Tensor, sentence: Tensor | None) -> Tensor:
        return keep.sum(1, keepdim=True).float()


class Fading:
    """A sharpener that does nothing, or makes everything grey."""

    def __init__(self, grey: float) -> None:
        self.grey = grey

    def mean(self, drawing: Tensor, sentence: Tensor) -> Tensor:
        assert sentence.tolist() == [[1.0], [2.0], [3.0]]
        return torch.lerp(drawing, torch.full_like(drawing, 0.5), self.grey)


NOISE = torch.randn((3, 2, 4, 5), generator=torch.Generator().manual_seed(2))
BATCH = Batch(IMAGES, torch.ones(3, 3, dtype=torch.long), torch.ones(3, 3).tril().bool(), ("a", "b", "c"))


def test_the_bound_is_minus_its_terms_and_comes_with_its_floor() -> None:
    found = image_bounds(Fixed(), BATCH, NOISE)
    drawn = 0.7 * IMAGES + 0.3 * torch.sigmoid(NOISE)
    recon = sum(summed(image, mean) for image, mean in zip(IMAGES, drawn, strict=True))
    assert float(found["recon"].sum()) == pytest.approx(recon, rel=1e-5)
    assert float(found["kl"].sum()) == 6 and found["bound"].shape == (3,)
    assert float(found["bound"].sum()) == pytest.approx(-recon - 6, rel=1e-5)
    assert float(found["floor"].sum()) == pytest.approx(float(entropy_floor(IMAGES).sum()), rel=1e-6)
    assert "sharpened/bound" not in found


def test_after_sharpening_only_the_image_is_another() -> None:
    same = image_bounds(Fixed(), BATCH, NOISE, Fading(0.0))
    assert float(same["sharpened/bound"].sum()) == pytest.approx(float(same["bound"].sum()), rel=1e-6)
    grey = image_bounds(Fixed(), BATCH, NOISE, Fading(1.0))
    assert float(grey["sharpened/recon"].sum()) == pytest.approx(3 * 40 * math.log(2), rel=1e-5)
    assert float(grey["sharpened/bound"].sum()) == pytest.approx(-3 * 40 * math.log(2) - 6, rel=1e-5)


def test_a_model_of_another_likelihood_is_measured_on_the_same_footing() -> None:
    other, own = image_bounds(Fixed(bernoulli=False), BATCH, NOISE), image_bounds(Fixed(), BATCH, NOISE)
    assert float(other["bound"].sum()) == pytest.approx(float(own["bound"].sum()), rel=1e-5)
    squares = float((0.3 * (torch.sigmoid(NOISE) - IMAGES)).square().sum())
    assert float(other["own/bound"].sum()) == pytest.approx(-squares - 6, rel=1e-4)


def test_a_bound_that_is_not_finite_names_the_image() -> None:
    with pytest.raises(ValueError, match="kl is not finite for a"):
        image_bounds(Fixed(kl=math.inf), BATCH, NOISE)
