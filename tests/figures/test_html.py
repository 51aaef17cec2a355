"""The page as text: nothing in it is markup but ours, and every picture is there with its words. Browsers: test_compare_page.py."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from pipeline.figures import page
from pipeline.figures.curves import Curve, curves, thinned, window
from pipeline.figures.html import (
    Card,
    Cards,
    Chart,
    Charts,
    Commands,
    Film,
    Films,
    Map,
    Page,
    Section,
    Table,
    Tile,
    read_markdown,
    render,
)

GENERATOR = np.random.default_rng(0)
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><iframe src=//example.com>",
    "' onload='alert(1) &lt; &amp;",
    "<!-- ]]> -->",
    "zebra \ud800 🦓 \u202e",
]


class Seen(HTMLParser):
    """Tags with their attributes, and all text outside of <style>."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words, self._within = "", ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        self.words += "" if self._within == "style" else data

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def image(channels: int = 1) -> np.ndarray:
    return GENERATOR.random((channels, 6, 5))


def everything(say: str) -> Page:
    """A page with every part, on which all that can be said is `say`."""
    words, canvases = say.split() or [say], GENERATOR.random((4, 3, 6, 6))
    alignment = GENERATOR.dirichlet(np.ones(len(words) + 2), size=4)
    cards = [Card(say, [Tile(image(), say, say)]), Card(page.plain(say), [Tile(image(3), say)] * 5)]
    chart = Chart("<svg xmlns='http://www.w3.org/2000/svg'/>", "<svg xmlns='http://www.w3.org/2000/svg' id='d'/>", say)
    table = f"| {say.replace('|', chr(92) + '|')} | n |\n| --- | ---: |\n| {say} | 3 |"
    parts = [
        *[Cards(cards, say, above) for above in (True, False)],
        Films([Film(words, canvases, alignment), Film(words, canvases)]),
        Map(words, alignment[None], canvases),
        Table(table, say, say),
        Commands([say], say),
        Charts([chart], say),
    ]
    return Page(say, say, [Section(say, say, parts)])


@pytest.mark.parametrize("say", HOSTILE)
def test_whatever_a_caption_says_is_text_and_no_markup(say: str) -> None:
    harmless, hostile = (Seen(render(everything(words))) for words in ("a cat " * len(say.split()), say))
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in harmless.tags}
    assert hostile.words.count(" ".join(say.encode("utf-8", "replace").decode().split())) >= 7
    for tag, attributes in hostile.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "srcset"):
            assert attributes.get(name, "data:").startswith(("data:", "#s")), (tag, attributes)


def test_the_policy_allows_nothing_from_outside_and_only_our_style() -> None:
    document = render(everything("a cat"))
    (policy,) = [tag["content"] for tag in Seen(document).named("meta") if tag.get("http-equiv")]
    style = re.search(r"<style>(.*?)</style>", document, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["style-src"] == f"'sha256-{digest}'" and "script-src" not in rules
    assert "url(" not in style and "@import" not in style


def test_every_image_is_in_the_page_pixel_for_pixel_with_its_words() -> None:
    tiles = [Tile(image(channels), f"tile {channels}", "under it") for channels in (1, 3)]
    seen = Seen(render(Page("t", "l", [Section("h", "s", [Cards([Card("a cat .", tiles)])])])))
    assert "a cat." in seen.words and seen.words.count("under it") == 2
    for tile, found in zip(tiles, seen.named("img"), strict=True):
        assert found["alt"] == tile.alt and (found["width"], found["height"]) == ("5", "6")
        with Image.open(io.BytesIO(base64.b64decode(found["src"].partition(",")[2]))) as picture:
            pixels = np.asarray(picture).reshape(6, 5, -1).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(pixels, tile.image, atol=0.51 / 255)


def test_a_table_is_read_as_the_jobs_print_it() -> None:
    head, right, rows = read_markdown("| system | R@1 |\n| --- | ---: |\n| a \\| b | 3 % |\n| c |\n| - | - |")
    assert (head, right) == (["system", "R@1"], [False, True])
    assert rows == [["a | b", "3 %"], ["c", ""], ["-", "-"]]
    with pytest.raises(ValueError, match="not a markdown table"):
        read_markdown("all is well")


@pytest.mark.parametrize(("steps", "columns"), [(1, 1), (8, 8), (12, 12), (13, 7), (32, 11), (64, 11)])
def test_a_map_has_a_cell_for_every_word_and_step_and_few_canvases(steps: int, columns: int) -> None:
    alignment = np.zeros((steps, 5))  # two columns of padding
    alignment[:, 1] = 0.9
    alignment[:, 2] = 0.1
    part = Map("a red bus".split(), alignment[None], GENERATOR.random((steps, 1, 6, 6)))
    seen = Seen(render(Page("t", "l", [Section("h", "s", [part])])))
    assert len(seen.named("img")) == columns
    assert sum(int(tag["colspan"]) for tag in seen.named("th") if "colspan" in tag) == steps
    shades = [tag["class"] for tag in seen.named("td") if "title" in tag]
    assert shades == ["s0"] * steps + ["s18"] * steps + ["s2"] * steps  # of 1: three words are all above a third
    assert [tag["class"] for tag in seen.named("td") if "mean" in tag.get("class", "")] == [
        "mean s0",
        "mean s18",
        "mean s2",
    ]


def test_the_weight_of_a_word_is_the_mean_of_several_drawings_and_the_map_is_the_first_one() -> None:
    alignments = np.array([[[1.0, 0], [1, 0]], [[0, 1], [0.5, 0.5]]])  # (drawings, steps, words)
    part = Map(["a", "bus"], alignments, GENERATOR.random((2, 1, 6, 6)))
    seen = Seen(render(Page("t", "l", [Section("h", "s", [part])])))
    assert [tag["title"] for tag in seen.named("td") if "title" in tag] == ["100 %", "100 %", "0 %", "0 %"]
    assert "62 %" in seen.words and "38 %" in seen.words and "means over 2 drawings" in seen.words


def test_words_that_are_all_alike_have_no_full_colour() -> None:
    words = [f"w{i}" for i in range(12)]
    part = Map(words, np.full((1, 2, 12), 1 / 12), GENERATOR.random((2, 1, 6, 6)))
    seen = Seen(render(Page("t", "l", [Section("h", "s", [part])])))
    assert {tag["class"] for tag in seen.named("td") if "title" in tag} == {"s7"}


def test_curves_are_the_same_svg_twice_and_another_one_in_the_dark() -> None:
    several = [
        Curve("one $\\nosuch{$", [(step, -2000 / (step + 1)) for step in range(1000)], [(900, -3.0), (999, -2.5)]),
        Curve("two", [(5, -4.0)]),
    ]
    one, again, dark = (
        curves(several, "steps", "nats"),
        curves(several, "steps", "nats"),
        curves(several, "s", "n", True),
    )
    assert one == again != dark and one.lstrip().startswith("<?xml") and len(one) < 100_000


def test_an_axis_of_probabilities_shows_all_of_them_and_one_of_nats_as_much_as_it_needs() -> None:
    def numbers(*levels: float, **options: bool) -> list[str]:
        svg = curves([Curve("a", [(step, level) for step in range(9) for level in levels])], "steps", "up", **options)
        return [said for said in re.findall("<!-- (.*?) -->", svg) if said not in ("steps", "up", "a")][-5:]

    assert numbers(0.5, probabilities=True) == ["0", "0.25", "0.5", "0.75", "1"]
    assert len(set(numbers(-2.1, -2.4))) == 5, "two ticks say the same number"


def test_a_long_line_is_thinned_to_means_and_the_first_steps_leave_the_window() -> None:
    points = np.stack([np.arange(1000.0), np.arange(1000.0) * 2], axis=1)
    few = thinned(points, 100)
    assert few.shape == (100, 2) and few[0].tolist() == [4.5, 9.0]
    assert thinned(points[:50], 100) is not None and len(thinned(points[:50], 100)) == 50
    low, high = window([-10_000.0, *np.linspace(-500, -400, 100)])
    assert -520 < low < -490 and -400 < high < -390
    assert window([3.0])[0] < 3.0 < window([3.0])[1]
