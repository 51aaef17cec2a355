"""Which words a drawing step looked at: alignments as a map of words x steps, and the mean over steps and drawings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import ACCENT, GAP, LABEL, LINE, MARGIN, SOFT, TEXT, TITLE

ROW = 40  # height of a word's row
BAR = 200  # longest bar of the means


def heatmap(title: str, words: Sequence[str], alignments: np.ndarray, canvases: np.ndarray) -> Image.Image:
    """words (N), alignments (K, T, N) with rows that sum to 1, canvases (T, C, H, W) -> one map, under the canvas of each step.

    The map is that of the first of K drawings of the caption, whose canvases are given; the means are over all of them.
    """
    alignment, mean = alignments[0], alignments[..., : len(words)].mean((0, 1))
    steps = len(alignment)
    cell = max(12, min(96, 1_000 // steps))
    shown = [step for step in range(steps) if cell >= 72 or step % -(-72 // cell) == 0]  # canvases need room
    names = max(page.width_of(word) for word in words) + 2 * GAP
    left, top = MARGIN + names, MARGIN + round(1.3 * TITLE) + round(1.6 * LABEL)
    tile = cell * max(1, -(-72 // cell)) - 6
    table = top + tile + GAP
    width = left + steps * cell + GAP * 2 + BAR + 60 + MARGIN
    picture, draw = page.blank(width, table + len(words) * ROW + round(2.2 * LABEL) + MARGIN // 2)

    page.write(draw, (MARGIN, MARGIN), [page.plain(title, face="bold")], TITLE)
    for step in shown:
        small = page.picture(canvases[step]).resize((tile, tile), Image.Resampling.LANCZOS)
        picture.paste(small, (left + step * cell, top))
        page.write(
            draw, (left + step * cell, top - round(1.35 * LABEL)), [page.plain(str(step + 1), SOFT, "italic")], LABEL
        )
    page.write(draw, (MARGIN, top - round(1.35 * LABEL)), [page.plain("step", SOFT, "italic")], LABEL)
    brightest = max(float(alignment.max()), 1e-9)
    right = left + steps * cell + 2 * GAP
    for row, word in enumerate(words):
        y = table + row * ROW
        page.write(
            draw, (left - 2 * GAP - page.width_of(word), y + (ROW - round(1.2 * TEXT)) // 2), [[page.Word(word)]]
        )
        for step in range(steps):
            box = (left + step * cell, y, left + (step + 1) * cell - 3, y + ROW - 3)
            draw.rectangle(box, page.blend(0.03 + 0.97 * float(alignment[step, row]) / brightest, "#F1EFE9"))
        long = round(BAR * mean[row] / max(float(mean.max()), 1e-9))
        draw.rectangle((right, y + 10, right + max(long, 1), y + ROW - 13), ACCENT)
        page.write(draw, (right + long + 8, y + 6), [page.plain(f"{100 * mean[row]:.0f} %", SOFT)], LABEL)
    bottom = table + len(words) * ROW
    draw.line((left, bottom + 2, left + steps * cell - 3, bottom + 2), LINE, 2)
    note = f"darkest cell: {100 * brightest:.0f} % of a step's attention; bars: mean of {len(alignments)} drawings"
    page.write(draw, (left, bottom + 8), [page.plain(note, SOFT, "italic")], LABEL)
    page.write(draw, (right, table - round(1.35 * LABEL)), [page.plain("mean over steps", SOFT, "italic")], LABEL)
    return picture
