"""The picture of a run: captions, each with what was drawn for it, before and after sharpening."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import GAP, HEADING, LABEL, LINE, MARGIN, SOFT, TEXT, TITLE

GUTTER = 44  # between cards
HEADED = round(2.3 * HEADING)  # a section's heading with the room around it
BELOW = 14  # from an image to its caption
LEAST = 280  # width of a card, for its caption


@dataclass(frozen=True)
class Section:
    """Captions that belong together: a heading and, by name, images (n, C, H, W) of each of them."""

    heading: str
    captions: Sequence[str]
    images: Mapping[str, np.ndarray]


def sheet(title: str, sections: Sequence[Section], note: str = "", across: int = 3) -> Image.Image:
    """A page of cards, `across` of the widest in a row; in a card the images of one caption stand side by side above it."""
    side = page.picture(next(iter(sections[0].images.values()))[0]).width
    cards = [max(LEAST, len(section.images) * (side + GAP) - GAP) for section in sections]  # widths
    inner = across * (max(cards) + GUTTER) - GUTTER
    fit = [(inner + GUTTER) // (card + GUTTER) for card in cards]
    texts = [
        [page.wrap(page.plain(caption), card) for caption in section.captions]
        for section, card in zip(sections, cards, strict=True)
    ]
    rows = [_rows(text, count) for text, count in zip(texts, fit, strict=True)]
    head = MARGIN + round(1.25 * TITLE) + (round(1.9 * LABEL) if note else 0)
    names = [tuple(section.images) for section in sections]
    named = [i == 0 or names[i] != names[i - 1] for i in range(len(sections))]  # say what stands where, but once
    height = head + sum(GUTTER // 2 + HEADED + round(1.4 * LABEL) * say for say in named) + MARGIN // 2
    height += sum(side + BELOW + text + GUTTER for section in rows for _, text in section)
    picture, draw = page.blank(inner + 2 * MARGIN, height)

    page.write(draw, (MARGIN, MARGIN), [page.plain(title, face="bold")], TITLE)
    page.write(draw, (MARGIN, MARGIN + round(1.45 * TITLE)), [page.plain(note, SOFT, "italic")], LABEL)
    top = head
    for section, card, text, cut, say in zip(sections, cards, texts, rows, named, strict=True):
        top += GUTTER // 2
        draw.line((MARGIN, top, MARGIN + inner, top), LINE, 2)
        page.write(draw, (MARGIN, top + HEADING // 2), [page.plain(section.heading)], HEADING)
        top += HEADED
        if say:
            for column in range(len(cut[0][0])):
                for place, name in enumerate(section.images):
                    at = MARGIN + column * (card + GUTTER) + place * (side + GAP), top - 8
                    page.write(draw, at, [page.plain(name, SOFT, "italic")], LABEL)
            top += round(1.4 * LABEL)
        for which, tallest in cut:
            for column, i in enumerate(which):
                left = MARGIN + column * (card + GUTTER)
                for place, images in enumerate(section.images.values()):
                    picture.paste(page.picture(images[i]), (left + place * (side + GAP), top))
                page.write(draw, (left, top + side + BELOW), text[i], TEXT)
            top += side + BELOW + tallest + GUTTER
    return picture


def _rows(texts: Sequence, across: int) -> list[tuple[range, int]]:
    """The cards of each row, and the height of its longest caption."""
    starts = range(0, len(texts), across)
    rows = [range(start, min(start + across, len(texts))) for start in starts]
    return [(row, max(page.height_of(texts[i]) for i in row)) for row in rows]
