"""The pictures: what must be on them, found again in their pixels. How they look was looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.figures import page
from pipeline.figures.captions import COMPARED, DIGIT_FLIPS, FLIPS, NOVEL
from pipeline.figures.flips import flips, marked
from pipeline.figures.heatmap import heatmap
from pipeline.figures.sheet import Section, sheet
from pipeline.figures.steps import frames, save_animation, strip

WORDS = "the digit 3 is at the top left of the image .".split()
CAPTION = " ".join(WORDS)
GENERATOR = np.random.default_rng(0)


def images(*shape: int, size: int = 12, channels: int = 1) -> np.ndarray:
    return GENERATOR.random((*shape, channels, size, size))


def holds(picture: Image.Image, image: np.ndarray, side: int) -> bool:
    """Whether a picture shows an image as a tile of at least `side` pixels."""
    tile, canvas = np.asarray(page.picture(image, side)), np.asarray(picture)
    corner = (canvas[: -tile.shape[0] + 1, : -tile.shape[1] + 1] == tile[0, 0]).all(2)
    spots = zip(*np.nonzero(corner), strict=True)
    return any((canvas[y : y + tile.shape[0], x : x + tile.shape[1]] == tile).all() for y, x in spots)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_shows_every_image_of_every_section(channels: int) -> None:
    first = {name: images(5, channels=channels) for name in ("photograph", "drawn", "sharpened")}
    second = {name: images(2, channels=channels) for name in ("drawn", "sharpened")}
    sections = [Section("Some", [CAPTION] * 5, first), Section("Others", [CAPTION * 4, "a"], second)]
    picture = sheet("Title", sections, note="by seed 0")
    for shown in (first, second):
        for several in shown.values():
            assert all(holds(picture, image, page.TILE) for image in several)


def test_the_strip_has_the_first_and_the_last_step_and_some_between() -> None:
    canvases = images(32, 2)
    picture = strip("Title", [CAPTION, "a cat"], canvases)
    shown = [step for step in range(32) if holds(picture, canvases[step, 0], 160)]
    assert len(shown) == 8 and shown[0] == 0 and shown[-1] == 31


@pytest.mark.parametrize("steps", [2, 8, 32])
def test_the_animation_has_a_frame_a_step_and_rests_on_the_last(tmp_path: Path, steps: int) -> None:
    canvases, alignments = images(steps, 2), GENERATOR.dirichlet(np.ones(12), size=(steps, 2))
    drawn = frames([WORDS, WORDS[:5]], canvases, alignments)
    save_animation(tmp_path / "a.part", drawn)
    with Image.open(tmp_path / "a.part") as animation:
        assert animation.format == "GIF" and animation.n_frames == steps and animation.info["loop"] == 0
        durations = []
        for frame in range(steps):
            animation.seek(frame)
            durations.append(animation.info["duration"])
            shown = np.asarray(animation.convert("RGB"), int)
            assert np.abs(shown - np.asarray(drawn[frame], int)).mean() < 6  # 256 colours
    assert durations[-1] > 3 * durations[0] and sum(durations) < 6_000


def test_the_attended_word_is_the_brightest_and_no_word_moves() -> None:
    alignments = np.zeros((2, 1, 12))
    alignments[0, 0, 2], alignments[1, 0, 6] = 1, 1
    same = np.zeros((2, 1, 1, 12, 12))
    one, two = (np.asarray(frame, int) for frame in frames([WORDS], same, alignments))
    ink = [(frame != np.asarray(Image.new("RGB", (1, 1), page.PAPER))[0, 0]).any(2) for frame in (one, two)]
    assert (ink[0] == ink[1]).mean() > 0.999  # the same letters at the same places
    assert np.abs(one - two).sum() > 0
    plain = frames([WORDS], same, None)
    assert np.array_equal(np.asarray(plain[0]), np.asarray(plain[1]))


@pytest.mark.parametrize("steps", [1, 8, 32, 64])
def test_the_map_darkens_with_attention(steps: int) -> None:
    alignment = np.full((steps, 14), 0.0)  # two columns of padding
    alignment[:, 3] = 0.9
    alignment[:, 7] = 0.1
    picture = heatmap("Title", WORDS, alignment[None], images(steps))
    accent = np.asarray(Image.new("RGB", (1, 1), page.ACCENT))[0, 0]
    rows = np.flatnonzero((np.asarray(picture) == accent).all(2).sum(1) > 20 * 1.5)
    assert len(rows) > 20 and rows.max() - rows.min() < 8 * 40  # the cells of word 4 and the bars of words 4 and 8
    assert picture.width < 1_700


def test_only_the_words_that_differ_are_marked() -> None:
    def changed(*captions: str) -> list[list[str]]:
        return [[word.text for word in row if word.colour == page.ACCENT] for row in marked(captions)]

    assert changed("a red bus parked", "a blue bus parked") == [["red"], ["blue"]]
    assert changed("the 2 is left of 7", "the 7 is left of 2") == [["2", "7"], ["7", "2"]]
    assert changed("a cat", "a big cat") == [[], ["big"]]
    assert changed("a cat", "a cat") == [[], []]
    for group in (*FLIPS, *DIGIT_FLIPS):
        assert all(changed(*group)), group


def test_every_caption_of_the_paper_is_drawn() -> None:
    """Section 5.1 and the talk."""
    for caption in [
        "a stop sign is flying in blue skies",
        "a herd of elephants flying in the blue skies",
        "a toilet seat sits open in the grass field",
        "a person skiing on sand clad vast desert",
        "a pale yellow school bus is flying in blue skies",
    ]:
        assert f"{caption} ." in NOVEL
    for caption in [
        "a group of people walk on a beach with surf boards",
        "a large commercial airplane flying in blue skies",
    ]:
        assert f"{caption} ." in COMPARED
    for words, caption in {
        "yellow red green blue": "a {} school bus parked in a parking lot",
        "clear blue rainy": "a very large commercial plane flying in {} skies",
        "dry green": "a herd of elephants walking across a {} grass field",
        "cat dog": "a vintage photo of a {}",
        "desert forest": "a rider on the blue motorcycle in the {}",
        "beach sun": "a surfer , a woman , and a child walk on the {}",
    }.items():
        assert tuple(f"{caption.format(word)} ." for word in words.split()) in FLIPS
    assert ("the chocolate desert is on the table .", "a bowl of bananas is on the table .") in FLIPS


def test_flips_show_a_row_a_caption() -> None:
    first, second = images(2, 3), images(3, 3)
    picture = flips("Title", [(["a red bus", "a blue bus"], first), (["a", "b", "c"], second)])
    assert all(holds(picture, image, 128) for several in (first, second) for row in several for image in row)
