"""A contact sheet: random samples of a data set with their captions, to be looked at before anything is trained on them."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline import storage
from pipeline.sample import Manifest
from pipeline.shards.members import read_shard

COLUMNS = 6
SIDE = 150  # pixels of a tile's picture
FONT = 11  # points, at most: what the packaged font of Pillow shows at this size is readable
LINES, LINE = 4, 14  # lines of a caption that are shown, and the pixels of one


def contact_sheet(manifest: Manifest, count: int, seed: int) -> bytes:
    """A PNG of `count` samples drawn from all splits, each under its key with its first caption."""
    tiles = [_tile(*one) for one in _draw(manifest, count, seed)]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(tiles) // COLUMNS) * height), "white")
    for place, tile in enumerate(tiles):
        sheet.paste(tile, (place % COLUMNS * width, place // COLUMNS * height))
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def _draw(manifest: Manifest, count: int, seed: int) -> list[tuple[str, np.ndarray, str]]:
    """Key, image (H, W, C) and first caption of random samples, each at most once; every shard is read at most once."""
    ends = np.cumsum([shard.samples for shard in manifest.shards])
    chosen = np.sort(np.random.default_rng(seed).permutation(ends[-1])[:count])
    drawn = []
    for shard in np.unique(np.searchsorted(ends, chosen, side="right")):
        record = manifest.shards[shard]
        first, last = ends[shard] - record.samples, ends[shard]
        decoded = read_shard(storage.join(manifest.folder, record.name), record)
        for place in chosen[(chosen >= first) & (chosen < last)] - first:
            drawn.append((decoded.keys[place], decoded.images[place], decoded.captions[place][0]))
    return drawn


def _tile(key: str, image: np.ndarray, caption: str) -> Image.Image:
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert("RGB")
    picture = picture.resize((SIDE, SIDE), Image.Resampling.NEAREST)
    tile = Image.new("RGB", (SIDE + 10, SIDE + (LINES + 1) * LINE + 12), "white")
    tile.paste(picture, (5, 5))
    font = ImageFont.load_default(FONT)
    ink = ImageDraw.Draw(tile)
    for line, text in enumerate([key, *_wrapped(caption, font)]):
        ink.text((5, SIDE + 7 + line * LINE), text, fill="grey" if line == 0 else "black", font=font)
    return tile


def _wrapped(caption: str, font: ImageFont.FreeTypeFont) -> Sequence[str]:
    lines = textwrap.wrap(caption, width=int(SIDE / font.getlength("n")), max_lines=LINES, placeholder=" ...")
    return lines or ["(empty caption)"]
