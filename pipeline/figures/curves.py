"""How learning went, of several systems on the same axes: training as a line, validation as marks that a line joins."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.figures.page import INK, LINE, SOFT

COLOURS = ("#C2410C", "#0B6E99", "#4D7C0F", "#7E3794", "#B45309", "#0F766E", "#BE185D", "#52525B")
ON_DARK = ("#FF8A4C", "#5FBDE8", "#A3D65C", "#CE93E0", "#F5C04A", "#4FD1C0", "#F783B5", "#B4B4BC")
POINTS = 300  # of a line, at most


@dataclass(frozen=True)
class Curve:
    """Points (x, y) of a system: its training, and its validation."""

    name: str
    train: Sequence[tuple[float, float]]
    validation: Sequence[tuple[float, float]] = ()


def curves(series: Sequence[Curve], across: str, up: str, dark: bool = False, probabilities: bool = False) -> str:
    """An SVG for a page with a light or a dark ground, equal for equal points; readable at 340 pixels.

    probabilities: the axis goes from 0 to 1 whatever the values are, so that a line at 0.5 is seen to be there.
    """
    import matplotlib
    from matplotlib.figure import Figure

    ink, soft, line = ("#E9E6DF", "#A09C93", "#34353A") if dark else (INK, SOFT, LINE)
    buffer = io.StringIO()
    plain = {"svg.hashsalt": "curves", "text.parse_math": False}  # names are no formulas
    with matplotlib.rc_context({"font.family": "STIXGeneral", "font.size": 11, **plain}):
        figure = Figure(figsize=(4.6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        for curve, colour in zip(series, (ON_DARK if dark else COLOURS) * len(series), strict=False):
            x, y = thinned(np.array(curve.train, float).reshape(-1, 2)).T
            axes.plot(x, y, color=colour, lw=1.4, label=curve.name, alpha=0.9, marker="." if len(x) == 1 else None)
            if curve.validation:
                axes.plot(*zip(*curve.validation, strict=True), "o--", color=colour, ms=4, lw=0.8)
        if probabilities:
            axes.set_ylim(-0.03, 1.03)
            axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
        else:
            axes.set_ylim(*window([y for curve in series for _, y in (*curve.train, *curve.validation)]))
        axes.set_xlabel(across, color=soft)
        axes.set_ylabel(up, color=soft)
        axes.tick_params(colors=soft, which="both", labelsize=9, length=3)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.locator_params(axis="x", nbins=5)
        axes.grid(color=line, lw=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(line)
        axes.legend(frameon=False, labelcolor=ink, fontsize=9, loc="best" if probabilities else "lower right")
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


def thinned(points: np.ndarray, most: int = POINTS) -> np.ndarray:
    """(n, 2) -> at most `most` points, each the mean of neighbours."""
    if len(points) <= most:
        return points
    return np.stack([part.mean(0) for part in np.array_split(points, most)])


def window(values: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: all but the lowest twentieth, which is the first steps' and would leave no room for the rest."""
    low, high = np.quantile(values, 0.05), max(values)
    room = 0.06 * max(high - low, 1e-9 + 0.01 * abs(high))
    return float(low - room), float(high + room)
