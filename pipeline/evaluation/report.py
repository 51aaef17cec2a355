"""The figures of a run as a table that a person reads; tables.py has those of several systems.

Figures come by name, as they go to MLflow (test/bound, drawn/one_digit/seen/right, ...). A figure that a system does not have,
such as the bound of a purely adversarial one, is a dash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """A line of a run's table: what it says, where the figure and that after sharpening are, how it is printed."""

    label: str
    figure: str
    sharpened: str = ""
    form: str = "{:.1f}"


ROWS = (
    Row("lower bound on log p(image given caption), nats", "test/bound", "test/sharpened/bound"),
    Row("- of it KL divergence", "test/kl"),
    Row("- the best possible: minus the entropy of the images", "test/floor", form="-{:.1f}"),
    Row("- every image in its flat mean colour", "test/flat", form="-{:.1f}"),
    Row("same on training images", "train/bound", "train/sharpened/bound"),
    Row(
        "one digit, seen combinations: all right",
        "drawn/one_digit/seen/right",
        "drawn/sharpened/one_digit/seen/right",
        "%",
    ),
    Row(
        "one digit, held out: all right",
        "drawn/one_digit/held_out/right",
        "drawn/sharpened/one_digit/held_out/right",
        "%",
    ),
    Row(
        "one digit, seen, what is painted told another corner: all right",
        "drawn/one_digit/other_corner/right",
        "drawn/sharpened/one_digit/other_corner/right",
        "%",
    ),
    Row(
        "two digits, seen combinations: all right",
        "drawn/two_digits/seen/right",
        "drawn/sharpened/two_digits/seen/right",
        "%",
    ),
    Row(
        "two digits, held out: all right",
        "drawn/two_digits/held_out/right",
        "drawn/sharpened/two_digits/held_out/right",
        "%",
    ),
    Row("the judge of these on real canvases", "judge/accuracy", form="%"),
    Row("true image first of {candidates}: ratio to the mean sentence (the paper)", "retrieval/r_at_1", form="%"),
    Row("- ratio to the mean over captions", "retrieval/any/r_at_1", form="%"),
    Row("median rank of the true image: ratio to the mean sentence", "retrieval/median_rank", form="{:.0f}"),
    Row("- the same with the caption of another image", "retrieval/other/median_rank", form="{:.0f}"),
    Row("- ratio to the mean over captions", "retrieval/any/median_rank", form="{:.0f}"),
    Row("- among all measured images: ratio to the mean sentence", "retrieval/full/median_rank", form="{:.0f}"),
    Row("structural similarity to the true image", "ssi/mean", "ssi/sharpened/mean", "{:.3f}"),
)


def run_table(figures: Figures) -> str:
    """A run's figures as markdown: as drawn, and after sharpening where that was measured."""
    lines = ["| on the test split | drawn | sharpened |", "| --- | ---: | ---: |"]
    for row in ROWS:
        if row.figure in figures:
            label = row.label.format(candidates=round(figures.get("retrieval/candidates", 0)))
            cells = [_printed(figures, name, row.form) for name in (row.figure, row.sharpened)]
            lines.append(f"| {label} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _printed(figures: Figures, name: str, form: str) -> str:
    """A figure with its uncertainty, or what chance gives, where they are known; a dash where there is no figure."""
    if name not in figures:
        return "-"
    percent = form == "%"
    text = f"{100 * figures[name]:.0f} %" if percent else form.format(figures[name])
    if f"{name}_low" in figures:
        ends = [100 * figures[f"{name}_{end}"] if percent else figures[f"{name}_{end}"] for end in ("low", "high")]
        text += f" ({ends[0]:.0f} to {ends[1]:.0f})"
    elif f"{name}_se" in figures and not percent:
        text += " ± " + form.strip("-").format(figures[f"{name}_se"])
    group, _, last = name.rpartition("/")
    if (chance := figures.get(f"{group}/chance/{last}")) is not None:
        text += f", chance {100 * chance:.0f} %" if percent else f", chance {chance:.1f}"
    return text
