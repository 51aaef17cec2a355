"""Captions that differ in a word or two, drawn from the same noise: what changes in a picture is what the words changed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import ACCENT, GAP, LINE, MARGIN, TITLE, Word

GUTTER = 40  # between groups


def flips(title: str, groups: Sequence[tuple[Sequence[str], np.ndarray]]) -> Image.Image:
    """groups of (captions (n), images (n, samples, C, H, W)) -> a row a caption, a column a noise, changed words marked."""
    side = page.picture(groups[0][1][0, 0], 128).width
    samples = groups[0][1].shape[1]
    text = 400
    left = MARGIN + text + 3 * GAP
    width = left + samples * (side + GAP) - GAP + MARGIN
    head = MARGIN + round(1.9 * TITLE)
    rows = sum(len(captions) for captions, _ in groups)
    picture, draw = page.blank(width, head + rows * (side + GAP) + (len(groups) - 1) * GUTTER + MARGIN)
    page.write(draw, (MARGIN, MARGIN), [page.plain(title, face="bold")], TITLE)
    top = head
    for number, (captions, images) in enumerate(groups):
        if number:
            draw.line((MARGIN, top + GUTTER // 2 - GAP // 2, width - MARGIN, top + GUTTER // 2 - GAP // 2), LINE, 2)
            top += GUTTER
        for caption, row in zip(marked(captions), images, strict=True):
            lines = page.wrap(caption, text)
            page.write(draw, (MARGIN, top + max(0, side - page.height_of(lines)) // 2), lines)
            for column, image in enumerate(row):
                picture.paste(page.picture(image, 128), (left + column * (side + GAP), top))
            top += side + GAP
    return picture


def marked(captions: Sequence[str]) -> list[list[Word]]:
    """Captions with the words that not all of them share, at the same place, set off."""
    split = [[word.text for word in page.plain(caption)] for caption in captions]
    start = 0
    while all(len(words) > start and words[start] == split[0][start] for words in split):
        start += 1
    end = 0
    while all(len(words) - end > start and words[-1 - end] == split[0][-1 - end] for words in split):
        end += 1
    alike = len({len(words) for words in split}) == 1
    found = []
    for words in split:
        row = []
        for place, word in enumerate(words):
            same = alike and all(other[place] == word for other in split)
            inside = start <= place < len(words) - end and not same
            row.append(Word(word, ACCENT, "bold") if inside else Word(word))
        found.append(row)
    return found
