"""From captions to drawings: the one place that samples from the prior.

Used by evaluation and figures. A drawing is a function of (weights, caption, seed, row): the noise of a row does not depend on
which other rows are drawn with it, so a picture stays the same when it is drawn alone, in a larger batch or on another machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.models.base import CaptionModel, noise_rows
from pipeline.sample import Generated

PRIOR = 3  # stream of noise that drawings use: training takes (seed, 1, step), validation (seed, 2, image)


class Encoder(Protocol):
    """What is needed of a vocabulary."""

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions -> ids (B, N) int64, keep (B, N) bool."""


def row_noise(
    shape: tuple[int, ...], rows: Sequence[int], seed: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """(len(rows), *shape) standard normal; every row is a function of (seed, its number) alone."""
    return torch.cat([noise_rows(shape, 1, (*seed, row)) for row in rows]).to(device)


@torch.no_grad()
def draw_captions(
    model: CaptionModel,
    vocabulary: Encoder,
    captions: Sequence[str],
    seed: int,
    sharpener: nn.Module | None = None,
    per_caption: int = 1,
    *,
    rows: Sequence[int] | None = None,
    sentences: Tensor | None = None,
    batch: int = 100,
    steps: bool = False,
    where: Sequence[str] | None = None,
) -> Generated:
    """Draw every caption `per_caption` times; the drawings of a caption lie together.

    rows: numbers that name the noise of each drawing, 0, 1, 2 ... unless given; equal numbers get equal noise, so that two
    captions can be compared by nothing but their words. sentences: (captions, S) for the models that take a sentence vector.
    steps: keep the canvas after each step, too (T times the memory). where: for models with an attention of its own for where,
    the captions that it is told in the place of these. Results are on the CPU.
    """
    if not captions:
        raise ValueError("no captions to draw")
    device = next(model.parameters()).device
    words, keep = vocabulary.encode(list(captions))
    places = None if where is None else vocabulary.encode(list(where))
    which = torch.arange(len(captions)).repeat_interleave(per_caption)
    rows = range(len(which)) if rows is None else rows
    if len(rows) != len(which):
        raise ValueError(f"{len(rows)} rows of noise for {len(which)} drawings: each needs one")
    parts = []
    for start in range(0, len(which), batch):
        chosen = which[start : start + batch]
        caption = words[chosen].to(device), keep[chosen].to(device)
        sentence = None if sentences is None else sentences[chosen].to(device)
        noise = row_noise(model.noise_shape, rows[start : start + batch], (seed, PRIOR), device)
        apart = {} if places is None else {"where": tuple(part[chosen].to(device) for part in places)}
        drawn = model.sample(*caption, sentence, noise, steps, **apart)
        if sharpener is not None:
            drawn.sharpened = sharpener(drawn.images, model.describe(*caption, sentence))
        parts.append(drawn)
    return Generated(
        images=_joined([part.images for part in parts], 0),
        canvases=_joined([part.canvases for part in parts], 1),
        alignments=_joined([part.alignments for part in parts], 1),
        sharpened=_joined([part.sharpened for part in parts], 0),
    )


def _joined(parts: list[Tensor | None], dim: int) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part.cpu() for part in parts], dim)
