"""The picture of a run: captions, each with what was drawn for it, before and after sharpening."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import GAP, HEADING, INK, LABEL, LINE, MARGIN, SOFT, TEXT, TITLE

GUTTER = 44  # between cards
HEADED = round(2.3 * HEADING)  # a section's heading with the room around it


@dataclass(frozen=True)
class Section:
    """Captions that belong together: a heading and, by name, images (n, C, H, W) of each of them."""

    heading: str
    captions: Sequence[str]
    images: Mapping[str, np.ndarray]


def sheet(title: str, sections: Sequence[Section], across: int = 3) -> Image.Image:
    """A page of cards, `across` in a row; in a card the images of one caption stand side by side above it."""
    first = next(iter(sections[0].images.values()))
    side = page.picture(first[0]).width
    card = side * len(sections[0].images) + GAP * (len(sections[0].images) - 1)
    width = 2 * MARGIN + across * card + (across - 1) * GUTTER
    rows = [
        (section, range(start, min(start + across, len(section.captions))))
        for section in sections
        for start in range(0, len(section.captions), across)
    ]
    texts = {
        (section.heading, i): page.wrap(page.plain(caption), card)
        for section in sections
        for i, caption in enumerate(section.captions)
    }
    heights = [max(page.height_of(texts[section.heading, i]) for i in which) for section, which in rows]
    below = 14  # from an image to its caption
    height = MARGIN + round(1.3 * TITLE) + len(sections) * (GUTTER // 2 + HEADED) + MARGIN // 2
    height += sum(side + below + text + GUTTER for text in heights) + round(1.4 * LABEL)
    picture, draw = page.blank(width, height)

    page.write(draw, (MARGIN, MARGIN), [page.plain(title, face="bold")], TITLE)
    top, shown = MARGIN + round(1.3 * TITLE), None
    for (section, which), text in zip(rows, heights, strict=True):
        if section is not shown:
            top += GUTTER // 2
            draw.line((MARGIN, top, width - MARGIN, top), LINE, 2)
            page.write(draw, (MARGIN, top + HEADING // 2), [page.plain(section.heading, INK)], HEADING)
            top += HEADED
            if shown is None:  # say once what stands where
                for column in range(min(across, len(section.captions))):
                    for place, name in enumerate(section.images):
                        left = MARGIN + column * (card + GUTTER) + place * (side + GAP)
                        page.write(draw, (left, top - 8), [page.plain(name, SOFT, "italic")], LABEL)
                top += round(1.4 * LABEL)
            shown = section
        for column, i in enumerate(which):
            left = MARGIN + column * (card + GUTTER)
            for place, images in enumerate(section.images.values()):
                picture.paste(page.picture(images[i]), (left + place * (side + GAP), top))
            page.write(draw, (left, top + side + below), texts[section.heading, i], TEXT)
        top += side + below + text + GUTTER
    return picture
