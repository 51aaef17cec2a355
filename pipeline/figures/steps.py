"""How a drawing comes about: the canvas after each step, as a strip and as an animation in which attended words light up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import GAP, LABEL, MARGIN, SOFT, TEXT, TITLE, Word

SHOWN = 8  # canvases in a strip, at most
UNLIT = "#BDB9B0"  # a word that the step did not attend to
HOLD_MS = 1_800  # the finished drawing stays


def strip(title: str, captions: Sequence[str], canvases: np.ndarray) -> Image.Image:
    """captions (B), canvases (T, B, C, H, W) -> a row a caption, from the first step to the last."""
    steps = np.unique(np.linspace(0, len(canvases) - 1, min(SHOWN, len(canvases))).round().astype(int))
    side = page.picture(canvases[0, 0], 160).width
    width = 2 * MARGIN + len(steps) * side + (len(steps) - 1) * GAP
    head = MARGIN + round(1.3 * TITLE) + 2 * LABEL
    row = side + round(2.4 * TEXT) + 20
    picture, draw = page.blank(width, head + row * len(captions) + MARGIN // 2)
    page.write(draw, (MARGIN, MARGIN), [page.plain(title, face="bold")], TITLE)
    for column, step in enumerate(steps):
        left = MARGIN + column * (side + GAP)
        page.write(draw, (left, head - round(1.3 * LABEL)), [page.plain(f"step {step + 1}", SOFT, "italic")], LABEL)
    for number, caption in enumerate(captions):
        top = head + number * row
        for column, step in enumerate(steps):
            picture.paste(page.picture(canvases[step, number], 160), (MARGIN + column * (side + GAP), top))
        page.write(draw, (MARGIN, top + side + 10), page.wrap(page.plain(caption), width - 2 * MARGIN)[:1])
    return picture


def frames(
    captions: Sequence[Sequence[str]], canvases: np.ndarray, alignments: np.ndarray | None, across: int = 3
) -> list[Image.Image]:
    """captions: words of each (B, N_b); canvases (T, B, C, H, W); alignments (T, B, N) or None -> a frame a step.

    A word lights up as the step attends to it, next to the most attended word of that step.
    """
    side = page.picture(canvases[0, 0], 288).width
    across = min(across, len(captions))
    down = -(-len(captions) // across)
    lines = max(len(page.wrap([Word(word, face="bold") for word in words], side)) for words in captions)
    cell = side + 14 + round(1.2 * TEXT) * lines + 28
    width = MARGIN + across * side + (across - 1) * 3 * GAP
    drawn = []
    for step in range(len(canvases)):
        picture, draw = page.blank(width, MARGIN + down * cell)
        for number, words in enumerate(captions):
            left = MARGIN // 2 + (number % across) * (side + 3 * GAP)
            top = MARGIN // 2 + (number // across) * cell
            picture.paste(page.picture(canvases[step, number], 288), (left, top))
            lit = _lit(words, None if alignments is None else alignments[step, number])
            page.write(draw, (left, top + side + 14), page.wrap(lit, side))
        drawn.append(picture)
    return drawn


def save_animation(path: str | Path, images: Sequence[Image.Image]) -> None:
    """A looping GIF of about two seconds and a rest on the last frame, with one palette for all frames."""
    palette = images[-1].quantize(256)
    still = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    each = min(400, max(60, 2_400 // len(images)))
    durations = [each] * (len(images) - 1) + [HOLD_MS]
    still[0].save(path, "GIF", save_all=True, append_images=still[1:], duration=durations, loop=0, optimize=True)


def _lit(words: Sequence[str], weights: np.ndarray | None) -> list[Word]:
    """Words as bright as their weights; all in one face, so that none moves from frame to frame."""
    if weights is None:
        return [Word(word) for word in words]
    share = weights[: len(words)] / max(weights[: len(words)].max(), 1e-9)
    return [
        Word(word, page.blend(float(light), UNLIT, page.ACCENT), "bold")
        for word, light in zip(words, share, strict=True)
    ]
