"""Tables of several systems, cell by cell against figures worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.config import CaptionerConfig, DrawConfig, LapganConfig, VaeConfig
from pipeline.evaluation.compare import Gap
from pipeline.evaluation.published import PUBLISHED, published_of
from pipeline.evaluation.tables import (
    System,
    bound_table,
    faithfulness_table,
    full_table,
    gap_table,
    retrieval_table,
    telling_table,
    ways_table,
)

RANKED = {"r_at_1": 0.0425, "r_at_1_low": 0.03, "r_at_1_high": 0.06, "chance/r_at_1": 0.01}
RANKED |= {"median_rank": 31.5, "median_rank_low": 29.0, "median_rank_high": 34.0, "chance/median_rank": 50.5}
RANKED |= {"queries": 500.0, "candidates": 100.0}
ALIGN = {
    **{f"retrieval/{way}{name}": value for way in ("", "any/") for name, value in RANKED.items()},
    **{f"retrieval/r_at_{k}": k / 90 for k in (5, 10, 50)},
    **{f"retrieval/r_at_{k}_{end}": k / 100 for k in (5, 10, 50) for end in ("low", "high")},
    **{f"retrieval/chance/r_at_{k}": k / 100 for k in (5, 10, 50)},
    "train/bound": -1790.26,
    "train/bound_se": 5.14,
    "test/bound": -1791.5,
    "test/bound_se": 4.0,
    "test/sharpened/bound": -2042.3,
    "test/sharpened/bound_se": 8.0,
    "train/floor": 1650.0,
    "train/floor_se": 3.0,
    "test/floor": 1660.0,
    "test/floor_se": 4.0,
    "train/flat": 1990.0,
    "test/flat": 1985.0,
    "ssi/mean": 0.1556,
    "ssi/std": 0.1,
    "drawn/one_digit/seen/number": 0.99,
    "drawn/one_digit/seen/digits": 0.98,
    "drawn/one_digit/seen/places": 0.97,
    "drawn/one_digit/seen/right": 0.965,
    "drawn/one_digit/seen/right_se": 0.012,
    "judge/accuracy": 0.98,
    "judge/one_digit": 0.985,
}
COST = {"step": 1_500, "images": 75_000, "seconds": 180.4, "cpu_seconds": 361.6, "parameters": 5_010_000}
SYSTEMS = [
    System("alignDRAW", ALIGN, COST, published_of(DrawConfig())),
    System("LAPGAN", {"ssi/mean": 0.08, "ssi/std": 0.07, "ssi/sharpened/mean": 0.1}, {}, published_of(LapganConfig())),
]


def rows(table) -> dict[str, list[str]]:
    """First cell -> the others, of a table whose every line has as many cells."""
    lines = table.markdown.splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(table.note) > 20
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if not row[0].startswith("---")}


def test_bounds_stand_between_their_floor_and_a_flat_image_with_the_published_ones_and_the_cost() -> None:
    found = rows(bound_table(SYSTEMS))
    assert found["alignDRAW"] == [
        *("-1790.3 ± 5.1", "-1791.5 ± 4.0", "-2042.3 ± 8.0"),
        *("-1792.15", "-1791.53", "-2042.31"),
        *("1,500", "75,000", "180", "362", "5.01 M"),
    ]
    assert found["LAPGAN"] == ["-"] * 11
    floor = found["the best possible: minus the entropy of the images"]
    assert floor[:3] == ["-1650.0 ± 3.0", "-1660.0 ± 4.0", "-"]
    assert found["every image in its flat mean colour"][:2] == ["-1990.0", "-1985.0"]
    head = next(iter(found.values()))
    assert [name.startswith("published on COCO") for name in head].count(True) == 3


def test_retrieval_has_intervals_and_chance_and_a_system_without_a_bound_has_its_similarity_alone() -> None:
    table = retrieval_table(SYSTEMS)
    found = rows(table)
    assert found["alignDRAW"][0] == "4.2 (3.0 to 6.0)" and found["alignDRAW"][4] == "31.5 (29 to 34)"
    assert found["alignDRAW"][5:7] == ["0.156 ± 0.100", "-"]
    assert found["alignDRAW"][7:] == ["3.0 / 14.0 / 22.9 / 68.5", "31", "0.156 ± 0.11"]
    assert found["LAPGAN"] == [*["-"] * 5, "0.080 ± 0.070", "0.100", "-", "-", "0.08 ± 0.07"]
    assert found["chance"][:5] == ["1.0", "5.0", "10.0", "50.0", "50.5"]
    assert "500 test captions" in table.note and "first k of 100" in table.note
    assert full_table(SYSTEMS) is None
    ways = ways_table(SYSTEMS).markdown
    assert ways.count("alignDRAW") == 2 and "LAPGAN" not in ways and "ratio to the mean over captions" in ways


def test_a_ranking_of_all_images_has_its_own_chance_level() -> None:
    everywhere = {**RANKED, "candidates": 500.0, "chance/r_at_1": 0.002, "chance/median_rank": 250.5}
    ranked = System(
        "alignDRAW", {f"retrieval/full/{way}{k}": v for way in ("", "plain/") for k, v in everywhere.items()}
    )
    table = full_table([*SYSTEMS, ranked])
    assert rows(table)["alignDRAW"] == ["4.2 (3.0 to 6.0)", "31.5 (29 to 34)", "31.5 (29 to 34)"]
    assert rows(table)["chance"] == ["0.2", "250.5", "250.5"] and "LAPGAN" not in table.markdown
    assert "all 500 images" in table.note


def test_differences_are_printed_with_their_intervals_and_a_star_where_they_do_not_hold_zero() -> None:
    gaps = {
        "noalignDRAW": {
            "test/bound": Gap(1.25, 0.5, 2.0),
            "retrieval/r_at_1": Gap(-0.01, -0.03, 0.01),
            "ssi/mean": Gap(-0.02, -0.03, -0.01),
        },
        "LAPGAN": {"ssi/mean": Gap(0.0, 0.0, 0.0)},
    }
    found = rows(gap_table("alignDRAW", gaps))
    assert found["system"] == ["bound", "R@1", "SSI"]
    assert found["noalignDRAW"] == [
        "+1.25 (+0.50 to +2.00) *",
        "-1.0 (-3.0 to +1.0)",
        "-0.020 (-0.030 to -0.010) *",
    ]
    assert found["LAPGAN"] == ["-", "-", "+0.000 (+0.000 to +0.000)"]


def test_faithfulness_is_a_row_a_group_and_says_how_good_the_judge_is() -> None:
    table = faithfulness_table(SYSTEMS)
    assert rows(table)["alignDRAW"] == ["one digit, seen", "99.0", "98.0", "97.0", "96.5 ± 1.2"]
    assert "| the judge on real canvases | one digit |  |  |  | 98.5 |" in table.markdown
    assert "LAPGAN" not in table.markdown


def test_what_a_captioner_finds_stands_between_chance_and_real_images() -> None:
    told = {**RANKED, **{f"ratio/{name}": value for name, value in RANKED.items()}}
    found = rows(telling_table({"real images": told, "alignDRAW": told}, 200))
    assert found["alignDRAW"] == ["4.2 (3.0 to 6.0)", "31.5 (29 to 34)"] * 2
    assert found["chance"] == ["1.0", "50.5"] * 2


def test_a_model_finds_its_published_row() -> None:
    assert published_of(DrawConfig(caption="mean")).test == -1791.15
    assert published_of(VaeConfig(body="conv")).median_rank == 48
    assert published_of(CaptionerConfig()) is published_of(DrawConfig(caption="none")) is None


def test_the_published_figures_are_those_of_the_notes_on_the_paper(shared_data: Path) -> None:
    notes = (shared_data.parent / "paper.md").read_text().split("## 6. Tables")[1].split("\n## ")[0]
    names = {"alignDRAW": ("draw", "align"), "noalignDRAW": ("draw", "mean"), "LAPGAN": ("lapgan", "")}
    names |= {"skipthoughtDRAW": ("draw", "skipthought"), "Fully-Conn VAE": ("vae", "fc")}
    names |= {"Conv-Deconv VAE": ("vae", "conv")}
    seen = 0
    for line in notes.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if name not in names:
            continue
        numbers = [None if cell == "-" else float(cell) for cell in cells if re.fullmatch(r"-|-?[\d.]+", cell)]
        row, seen = PUBLISHED[names[name]], seen + 1
        if len(numbers) == 3:
            assert numbers == [row.train, row.test, row.sharpened]
        else:
            assert numbers == [*(row.r_at or [None] * 4), row.median_rank, row.ssi, row.ssi_std]
    assert seen == 9
    assert set(names.values()) == set(PUBLISHED)


@pytest.mark.parametrize("table", [bound_table, retrieval_table, ways_table])
def test_one_system_without_any_figure_makes_a_table_too(table) -> None:
    assert table([System("nothing", {})]).markdown.startswith("| system |")
