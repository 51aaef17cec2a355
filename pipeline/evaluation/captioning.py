"""Text -> image -> text: what a captioner sees in a drawing, beside the caption that it was drawn from.

The paper shows such triples (its talk, slide 16) and measures nothing. Here the true caption is ranked among distractors by
the captioner's log p(caption | drawing), so that faithfulness on photographs has a figure: retrieval.py turns these scores
into R@k. Real images, scored in the same way, are what a drawing can reach at best; other captions' drawings are chance.

Short captions of frequent words are likely for any image. So, as retrieval does with its mean sentence, the second score is
the ratio to a mean image: log p(y | x) - log p(y | mean image) (Kiros et al. 2014, who rank by it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.models.captioner import Captioner


class Dictionary(Protocol):
    """What is needed of a vocabulary."""

    words: Sequence[str]

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids (B, N) int64, keep (B, N) bool."""


def caption_images(
    captioner: Captioner, vocabulary: Dictionary, images: Tensor, beam: int = 5, longest: int = 30
) -> list[str]:
    """What the captioner says of images (n, C, H, W): words of its vocabulary with blanks between them."""
    said = (captioner.describe_image(image, beam, longest)[0] for image in images)
    return [" ".join(vocabulary.words[word] for word in words) for words in said]


def draw_distractors(captions: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """For each caption `count` others, all of different texts; a function of (seed, place in the list)."""
    texts = sorted(set(captions))
    if len(texts) <= count:
        raise ValueError(f"{count} distractors are asked for, but there are only {len(texts)} different captions")
    place = {text: number for number, text in enumerate(texts)}
    drawn = []
    for number, caption in enumerate(captions):
        others = np.random.default_rng((seed, number)).choice(len(texts) - 1, count, replace=False)
        drawn.append([texts[other + (other >= place[caption])] for other in others])
    return drawn


def offer(captions: Sequence[str], count: int, seed: int) -> list[list[str]]:
    """For each caption itself and after it its distractors."""
    return [[true, *others] for true, others in zip(captions, draw_distractors(captions, count, seed), strict=True)]


@torch.no_grad()
def score_captions(
    captioner: Captioner, vocabulary: Dictionary, images: Tensor, captions: Sequence[Sequence[str]]
) -> np.ndarray:
    """images (n, C, H, W), m captions for each of them -> log p(caption | image) (n, m), nats."""
    rows = []
    for image, texts in zip(images, captions, strict=True):
        words, keep = (tensor.to(image.device) for tensor in vocabulary.encode(list(texts)))
        seen = captioner.look(image[None]).rows(words.new_zeros(len(words)))
        rows.append(captioner.tell(seen, words, keep)[0].double().cpu().numpy())
    return np.stack(rows)


def score_offered(
    captioner: Captioner,
    vocabulary: Dictionary,
    images: Tensor,
    offered: Sequence[Sequence[str]],
    ease: Mapping[str, float],
) -> tuple[np.ndarray, np.ndarray]:
    """images (n, C, H, W), m captions for each of them -> log p(caption | image) and its ratio to what `ease_of` says of the
    caption, (n, m) each, nats."""
    plain = score_captions(captioner, vocabulary, images, offered)
    return plain, plain - np.array([[ease[text] for text in row] for row in offered])


def ease_of(
    captioner: Captioner, vocabulary: Dictionary, mean_image: Tensor, captions: Sequence[str]
) -> dict[str, float]:
    """log p(caption | mean image (C, H, W)) of every caption, nats."""
    texts = sorted(set(captions))
    parts = [texts[start : start + 100] for start in range(0, len(texts), 100)]
    scores = [score_captions(captioner, vocabulary, mean_image[None], [part])[0] for part in parts]
    return dict(zip(texts, np.concatenate(scores).tolist(), strict=True))
