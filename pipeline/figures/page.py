"""Paper, ink and type of the figures, and how an image becomes a tile: what they all share.

Every figure is a Pillow image that its caller saves. The typeface is STIX, which matplotlib brings along, so a picture looks
the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, SOFT, LINE, ACCENT = "#FBFAF7", "#1F2328", "#6B6F76", "#D9D6CE", "#C2410C"
MARGIN = 56  # pixels around a figure
GAP = 12  # between tiles that belong together
TITLE, HEADING, TEXT, LABEL = 44, 32, 26, 22  # type sizes, pixels
TILE = 192  # least side of an image on the page
FACES = {"regular": "STIXGeneral.ttf", "bold": "STIXGeneralBol.ttf", "italic": "STIXGeneralItalic.ttf"}


@lru_cache
def font(size: int, face: str = "regular") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", FACES[face]), size)


def width_of(text: str, size: int = TEXT, face: str = "regular") -> int:
    return round(font(size, face).getlength(text))


@dataclass(frozen=True)
class Word:
    """A word with its colour; how words are set one by one."""

    text: str
    colour: str = INK
    face: str = "regular"


def wrap(words: Sequence[Word], width: int, size: int = TEXT) -> list[list[Word]]:
    """Words -> lines no wider than `width`; a word that alone is wider gets a line of its own."""
    space, lines, used = width_of(" ", size), [[]], 0
    for word in words:
        wide = width_of(word.text, size, word.face)
        if lines[-1] and used + space + wide > width:
            lines.append([])
            used = 0
        used += wide + (space if lines[-1] else 0)
        lines[-1].append(word)
    return lines


def height_of(lines: Sequence[Sequence[Word]], size: int = TEXT) -> int:
    return round(1.2 * size) * len(lines)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], lines: Sequence[Sequence[Word]], size: int = TEXT) -> None:
    """Set lines of words, their upper left corner at `at`."""
    left, top = at
    for number, line in enumerate(lines):
        across = left
        for word in line:
            base = top + round(1.2 * size) * number + size  # words of different faces share their base line
            draw.text((across, base), word.text, word.colour, font(size, word.face), anchor="ls")
            across += width_of(word.text + " ", size, word.face)


def plain(text: str, colour: str = INK, face: str = "regular") -> list[Word]:
    """A text's words, all alike. "image ." is set as people write it: "image."."""
    for mark in (".", ",", "!", "?", "'s"):
        text = text.replace(f" {mark}", mark)
    return [Word(word, colour, face) for word in text.split()]


def picture(image: np.ndarray, side: int = TILE) -> Image.Image:
    """(C, H, W) in [0, 1] -> an RGB tile of at least `side` pixels, every pixel a square of the same size."""
    values = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    tile = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).convert("RGB")
    times = max(1, -(-side // tile.width))
    return tile.resize((tile.width * times, tile.height * times), Image.Resampling.NEAREST)


def blank(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), PAPER)
    return page, ImageDraw.Draw(page)


def blend(share: float, low: str = PAPER, high: str = ACCENT) -> str:
    """A colour between two, `share` of the way."""
    ends = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (low, high)]
    return "#" + "".join(f"{round(a + (b - a) * min(max(share, 0), 1)):02X}" for a, b in zip(*ends, strict=True))
