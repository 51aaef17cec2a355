"""Type and tiles."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.figures import page
from pipeline.figures.page import Word


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=30), st.integers(60, 500))
def test_wrapped_lines_hold_all_words_in_order_and_are_as_wide_as_allowed(texts: list[str], width: int) -> None:
    lines = page.wrap([Word(text) for text in texts], width)
    assert [word.text for line in lines for word in line] == texts
    for line in lines:
        wide = sum(page.width_of(word.text) for word in line) + (len(line) - 1) * page.width_of(" ")
        assert len(line) == 1 or wide <= width


def test_a_tile_shows_every_pixel_as_a_square() -> None:
    image = np.random.default_rng(0).random((3, 5, 5))
    tile = np.asarray(page.picture(image, side=20)) / 255
    assert tile.shape == (20, 20, 3)
    np.testing.assert_allclose(tile, image.transpose(1, 2, 0).repeat(4, 0).repeat(4, 1), atol=0.5 / 255)
    grey = np.asarray(page.picture(image[:1], side=1))
    assert grey.shape == (5, 5, 3) and (grey[..., 0] == grey[..., 2]).all()


def test_values_outside_of_an_image_are_cut_off() -> None:
    assert np.asarray(page.picture(np.array([[[-3.0, 7.0]]]), 1))[0, :, 0].tolist() == [0, 255]


def test_marks_are_set_as_people_write_them() -> None:
    words = [word.text for word in page.plain("a woman 's hat , red .")]
    assert words == ["a", "woman's", "hat,", "red."]


def test_colours_blend_from_end_to_end() -> None:
    assert page.blend(0, "#000000", "#FF8000") == "#000000"
    assert page.blend(1, "#000000", "#FF8000") == "#FF8000"
    assert page.blend(0.5, "#000000", "#FF8000") == "#804000"
    assert page.blend(7, "#000000", "#FF8000") == "#FF8000"
