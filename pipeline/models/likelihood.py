"""Log-probabilities and divergences, one number an image, in nats. Pure functions; nothing is averaged here."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def gaussian_kl(mean_q: Tensor, log_std_q: Tensor, mean_p: Tensor, log_std_p: Tensor) -> Tensor:
    """KL(q || p) of diagonal Gaussians, summed over the last axis: (..., Z) x 4 -> (...), nats."""
    gap = (mean_q - mean_p).square() + (2 * log_std_q).exp()
    return (0.5 * gap * (-2 * log_std_p).exp() - 0.5 + log_std_p - log_std_q).sum(-1)


def standard_kl(mean_q: Tensor, log_std_q: Tensor) -> Tensor:
    """KL(q || N(0, I)), summed over the last axis: (..., Z) x 2 -> (...), nats."""
    return (0.5 * (mean_q.square() + (2 * log_std_q).exp() - 1) - log_std_q).sum(-1)


def bernoulli_nll(logits: Tensor, image: Tensor) -> Tensor:
    """-log p(image) under independent Bernoulli pixels of mean sigmoid(logits): (B, ...) x 2 -> (B,), nats.

    Pixels are real values in [0, 1], not binarised, so it cannot fall below their entropy (evaluation/bound.py).
    """
    return F.binary_cross_entropy_with_logits(logits, image, reduction="none").flatten(1).sum(1)


def gaussian_nll(mean: Tensor, image: Tensor, deviation: float) -> Tensor:
    """-log p(image) under independent N(mean, deviation^2) pixels: (B, ...) x 2 -> (B,), nats of a density."""
    squares = (image - mean).square().flatten(1)
    return squares.sum(1) / (2 * deviation**2) + squares.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))
