"""One page with everything on it: tables, commands and pictures as a single HTML file that opens from disk, anywhere.

A page is described by the small types below and set by `render`. Choice: pictures lie in the file itself (data URIs), so that
it can be mailed, kept in MLflow and opened there; at a few hundred drawings of one KiB each that costs nothing. There is no
JavaScript: a drawing's animation and the words that light up with it run on one clock of CSS. The page may load nothing
(Content-Security-Policy), and every text is escaped: captions are other people's.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.figures import page
from pipeline.figures.page import Word
from pipeline.figures.style import LEVELS, STYLE

FRAME_S, HOLD_S = (0.12, 0.4), 2.0  # a step of an animation, least and most; the finished drawing stays
FILM_S = 3.2  # what all steps take together, within these limits
COLUMNS = 12  # canvases above a map, at most
FULL = 3  # times the weight of a word that is like all others: what is less has no full colour
MOST = 4  # tiles of a card that stay in one row on a phone


@dataclass(frozen=True)
class Tile:
    """An image, what it shows in words (alt) and what stands under it."""

    image: np.ndarray  # (C, H, W) in [0, 1]
    alt: str
    label: str = ""


@dataclass(frozen=True)
class Card:
    """A caption and what was drawn for it; a caption can be given as words, of which those in another colour are marked."""

    caption: str | Sequence[Word]
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Cards:
    """Cards in a grid, the caption below its tiles; or `above` them, for tiles in rows that are compared with each other."""

    cards: Sequence[Card]
    heading: str = ""
    above: bool = False

    def lines(self, sheet: list[str]) -> Iterator[str]:
        most = max(len(card.tiles) for card in self.cards)
        yield from _heading(self.heading)
        yield f'<div class="cards {"above" if self.above else ""} n{most if most <= MOST else "any"}">'
        for card in self.cards:
            words = page.plain(card.caption) if isinstance(card.caption, str) else card.caption
            said = " ".join(
                text(word.text) if word.colour == page.INK else f"<mark>{text(word.text)}</mark>" for word in words
            )
            tiles = f'<div class="tiles">{"".join(_tile(tile) for tile in card.tiles)}</div>'
            said = f"<figcaption>{said}</figcaption>"
            yield f"<figure>{said + tiles if self.above else tiles + said}</figure>"
        yield "</div>"


@dataclass(frozen=True)
class Film:
    """How a drawing comes about: words (N) light up as each step attends to them."""

    words: Sequence[str]
    canvases: np.ndarray  # (T, C, H, W) in [0, 1]
    alignment: np.ndarray | None = None  # (T, >= N), rows sum to 1


@dataclass(frozen=True)
class Films:
    """Animations that run together, with one switch to pause them."""

    films: Sequence[Film]

    def lines(self, sheet: list[str]) -> Iterator[str]:
        yield '<label class="pause"><input type="checkbox"> pause</label>'
        yield '<div class="cards films">'
        for film in self.films:
            steps = len(film.canvases)
            # all steps side by side in one image, of which the page shows a square
            strip = np.concatenate(list(film.canvases), axis=2)
            alt = f"the canvas after each of {steps} steps: {' '.join(film.words)}"
            moving = _animate(sheet, [f"object-position:{100 * k / max(1, steps - 1):.5g}% 0" for k in range(steps)])
            image = f'<img class="film {moving}" src="{png_uri(strip)}" alt="{text(alt)}"'
            image += f' width="{strip.shape[2]}" height="{strip.shape[1]}">'
            said = " ".join(self._words(film, sheet))
            yield f'<figure>{image}<figcaption class="said">{said}</figcaption></figure>'
        yield "</div>"

    @staticmethod
    def _words(film: Film, sheet: list[str]) -> Iterator[str]:
        """Each word as bright as the step attends to it, next to the most attended word of that step."""
        for place, word in enumerate(film.words):
            if film.alignment is None:
                yield text(word)
            else:
                weights = film.alignment[:, : len(film.words)]
                light = weights[:, place] / np.maximum(weights.max(1), FULL / len(film.words))
                moving = _animate(sheet, [f"--lit:{round(20 * share) * 5}%" for share in light])
                yield f'<span class="{moving}">{text(word)}</span>'


@dataclass(frozen=True)
class Map:
    """Which words each step of a drawing looked at: a row a word, a column a step; the mean over steps and drawings."""

    words: Sequence[str]
    alignments: np.ndarray  # (K, T, >= N) of K drawings of the caption, rows sum to 1; the map is that of the first
    canvases: np.ndarray  # (T, C, H, W) in [0, 1], of the first

    def lines(self, sheet: list[str]) -> Iterator[str]:
        every = self.alignments[..., : len(self.words)]
        weights, mean, least = every[0], every.mean((0, 1)), FULL / len(self.words)
        steps = len(weights)
        full, longest = max(float(weights.max()), least), max(float(mean.max()), least)
        span = -(-steps // COLUMNS)
        ends = [min(start + span, steps) for start in range(0, steps, span)]  # steps whose canvases are shown
        yield from _heading(" ".join(word.text for word in page.plain(" ".join(self.words))))
        yield '<div class="scroll" tabindex="0"><table class="map"><thead><tr><td></td>'
        for begin, end in zip([0, *ends], ends, strict=False):
            picture = _image(self.canvases[end - 1], f"canvas after step {end}")
            yield f'<th colspan="{end - begin}" scope="colgroup">step {end}{picture}</th>'
        yield f'<th scope="col">mean over steps</th></tr></thead><tbody class="{"roomy" if span == 1 else "narrow"}">'
        for place, word in enumerate(self.words):
            cells = "".join(
                f'<td class="{_share(weight / full)}" title="{100 * weight:.0f} %"></td>'
                for weight in weights[:, place]
            )
            average = f'<td class="mean {_share(mean[place] / longest)}">{100 * mean[place]:.0f} %</td>'
            yield f'<tr><th scope="row">{text(word)}</th>{cells}{average}</tr>'
        yield "</tbody></table></div>"
        means = f" Bars are means over {len(every)} drawings of the caption."
        yield f'<p class="note">Full colour is {100 * full:.0f} % of a step\'s attention.{means}</p>'


@dataclass(frozen=True)
class Table:
    """A table in the markdown that the jobs print; what stands below it."""

    markdown: str
    heading: str = ""
    note: str = ""

    def lines(self, sheet: list[str]) -> Iterator[str]:
        head, right, rows = read_markdown(self.markdown)
        yield from _heading(self.heading)
        yield f'<div class="scroll" tabindex="0" role="region" aria-label="{text(self.heading or "table")}"><table>'
        yield "<thead>" + _row("th", head, right) + "</thead><tbody>"
        yield from (_row("td", row, right) for row in rows)
        yield "</tbody></table></div>"
        if self.note:
            yield f'<p class="note">{text(self.note)}</p>'


@dataclass(frozen=True)
class Commands:
    """Lines to paste into a shell."""

    commands: Sequence[str]
    heading: str = ""

    def lines(self, sheet: list[str]) -> Iterator[str]:
        yield from _heading(self.heading)
        yield f'<pre class="scroll" tabindex="0"><code>{text(chr(10).join(self.commands))}</code></pre>'


@dataclass(frozen=True)
class Chart:
    """A drawn chart as SVG, for a light and for a dark page."""

    light: str
    dark: str
    alt: str


@dataclass(frozen=True)
class Charts:
    """Charts beside each other."""

    charts: Sequence[Chart]
    heading: str = ""

    def lines(self, sheet: list[str]) -> Iterator[str]:
        yield from _heading(self.heading)
        yield '<div class="charts">'
        for chart in self.charts:
            light, dark = (data_uri("image/svg+xml", svg.encode()) for svg in (chart.light, chart.dark))
            source = f'<source media="(prefers-color-scheme:dark)" srcset="{dark}">'
            yield f'<picture>{source}<img src="{light}" alt="{text(chart.alt)}"></picture>'
        yield "</div>"


Part = Cards | Films | Map | Table | Commands | Charts


@dataclass(frozen=True)
class Section:
    """A heading, one sentence that says what to see, and what is to be seen."""

    heading: str
    see: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """Title, a sentence on what all of it is, sections in the order one wants them."""

    title: str
    lead: str
    sections: Sequence[Section]


def render(described: Page) -> str:
    """The page as one HTML text."""
    sheet = [STYLE]  # animations add their rules
    body = "\n".join(_body(described, sheet))
    style = "\n".join(sheet)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>{text(described.title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def text(value: str) -> str:
    """Any text, as it is safe between tags and in quoted attributes."""
    return html.escape(value.encode("utf-8", "replace").decode(), quote=True)  # half a surrogate pair is no text


def data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_uri(image: np.ndarray) -> str:
    """(C, H, W) in [0, 1] -> a PNG of the same size; the page enlarges its pixels."""
    values = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[2] == 1 else values).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


def read_markdown(table: str) -> tuple[list[str], list[bool], list[list[str]]]:
    """A markdown table -> head, which columns stand right, rows; ValueError if it is none."""
    lines = [_cells(line) for line in table.strip().splitlines()]
    if len(lines) < 2 or not all(set(cell) <= set(":- ") and "-" in cell for cell in lines[1]):
        raise ValueError(f"not a markdown table: {table[:80]!r}; it needs a head and a line of dashes below it")
    head, rule, *rows = lines
    return head, [cell.endswith(":") for cell in rule], [(row + [""] * len(head))[: len(head)] for row in rows]


def _cells(line: str) -> list[str]:
    """The cells of a line; \\| is a bar within one."""
    return [cell.strip().replace("\0", "|") for cell in line.strip().replace("\\|", "\0").strip("|").split("|")]


def _body(described: Page, sheet: list[str]) -> Iterator[str]:
    yield f"<header><h1>{text(described.title)}</h1><p>{text(described.lead)}</p><nav aria-label=contents><ul>"
    yield "".join(f'<li><a href="#s{i}">{text(s.heading)}</a></li>' for i, s in enumerate(described.sections))
    yield "</ul></nav></header><main>"
    for number, section in enumerate(described.sections):
        yield f'<section id="s{number}"><h2>{text(section.heading)}</h2><p>{text(section.see)}</p>'
        for part in section.parts:
            yield from part.lines(sheet)
        yield "</section>"
    yield "</main>"


def _heading(heading: str) -> Iterator[str]:
    if heading:
        yield f"<h3>{text(heading)}</h3>"


def _image(image: np.ndarray, alt: str) -> str:
    return f'<img src="{png_uri(image)}" alt="{text(alt)}" width="{image.shape[2]}" height="{image.shape[1]}">'


def _tile(tile: Tile) -> str:
    label = f"<small>{text(tile.label)}</small>" if tile.label else ""
    return f'<div class="tile">{_image(tile.image, tile.alt)}{label}</div>'


def _row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    places = (
        f"<{tag} class=right>{text(_together(cell))}</{tag}>" if stands else f"<{tag}>{text(cell)}</{tag}>"
        for cell, stands in zip(cells, right, strict=False)
    )
    return f"<tr>{''.join(places)}</tr>"


def _together(cell: str) -> str:
    """A figure that breaks into lines only between value, interval and chance level."""
    cell = cell.replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")
    return re.sub(r"\([^()]*\)", lambda found: found[0].replace(" ", "\u00a0"), cell)


def _share(share: float) -> str:
    return f"s{round(LEVELS * min(max(float(share), 0.0), 1.0))}"


def _animate(sheet: list[str], states: Sequence[str]) -> str:
    """Rules that go through states, one a step, and rest on the last; the class that follows them."""
    each = min(max(FILM_S / len(states), FRAME_S[0]), FRAME_S[1])
    whole = each * len(states) + HOLD_S
    frames = "".join(f"{100 * each * step / whole:.4g}%{{{state}}}" for step, state in enumerate(states))
    name = f"m{len(sheet)}"
    rule = f"@keyframes {name}{{{frames}to{{{states[-1]}}}}}.{name}{{animation:{name} {whole:.4g}s step-end infinite}}"
    sheet.append(rule)
    return name
