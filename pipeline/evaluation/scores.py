"""How well a caption explains an image, next to how well any caption does: what retrieval ranks its candidates by.

Some images are easy under every caption, so the paper (section 5.2, after Kiros et al. 2014) ranks by p(x | y) / p(x | mean
sentence), here the difference of two lower bounds in nats. The second bound depends on the image alone and is computed once.
An image meets every caption with the same noise: what the sample of the posterior adds cancels out.

`Choice:` the mean sentence is the mean of `CaptionModel.describe` over the first captions of some training images
(`evaluation.mean_captions`), and a query is the first caption of its image, where the paper takes all of both; for alignDRAW,
which has no sentence vector, it replaces s_t at every step. Where captions decide much, as for digits, that vector is like no
caption's and its bound says little about the image. So next to the paper's score there is one that divides by the mean of
p(x | y) over some training captions, an estimate of p(x).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.models.base import CaptionModel
from pipeline.sample import Batch


@torch.no_grad()
def sum_sentences(model: CaptionModel, batch: Batch) -> tuple[int, np.ndarray]:
    """Number of captions and the sum of their sentence vectors (S,) in float64."""
    vectors = model.describe(batch.words, batch.keep, batch.sentence)
    return len(vectors), vectors.double().sum(0).cpu().numpy()


@torch.no_grad()
def score_mean(model: CaptionModel, images: Tensor, sentence: Tensor, noise: Tensor) -> np.ndarray:
    """images (n, C, H, W), the mean sentence (S,), noise (n, *noise_shape) -> bounds (n,) on log p(x | mean), nats."""
    words = torch.zeros(
        len(images), 1, dtype=torch.long, device=images.device
    )  # not looked at beside a sentence vector
    batch = Batch(
        images, words, torch.ones_like(words, dtype=torch.bool), ("",) * len(images), sentence.expand(len(images), -1)
    )
    return model.terms(batch, noise).bound.double().cpu().numpy()


@torch.no_grad()
def score_caption(
    model: CaptionModel, images: Tensor, words: Tensor, keep: Tensor, sentence: Tensor | None, noise: Tensor
) -> np.ndarray:
    """One caption, words and keep (N,), sentence (S,) or None, against images (n, C, H, W) -> bounds (n,), nats."""
    n = len(images)
    sentences = None if sentence is None else sentence.expand(n, -1)
    batch = Batch(images, words.expand(n, -1), keep.expand(n, -1), ("",) * n, sentences)
    return model.terms(batch, noise).bound.double().cpu().numpy()


def score_any(
    model: CaptionModel, images: Tensor, captions: Sequence[tuple[Tensor, Tensor, Tensor | None]], noise: Tensor
) -> np.ndarray:
    """Captions as `score_caption` takes them, images (n, C, H, W) -> log of the mean of p(x | y) over them (n,), nats."""
    each = [score_caption(model, images, *caption, noise) for caption in captions]
    return np.logaddexp.reduce(each, axis=0) - np.log(len(each))
