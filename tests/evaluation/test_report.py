"""Tables for people: what is known is printed with its uncertainty, what is not is a dash."""

from __future__ import annotations

from pipeline.evaluation.report import run_table

FIGURES = {
    "test/bound": -440.26,
    "test/bound_se": 5.14,
    "test/floor": 324.9,
    "drawn/one_digit/seen/right": 0.994,
    "drawn/sharpened/one_digit/seen/right": 1.0,
    "retrieval/candidates": 100.0,
    "retrieval/r_at_1": 0.28,
    "retrieval/r_at_1_low": 0.23,
    "retrieval/r_at_1_high": 0.34,
    "retrieval/chance/r_at_1": 0.01,
    "ssi/mean": 0.7071,
    "ssi/mean_se": 0.0161,
}


def test_a_run_is_a_table_of_what_was_measured() -> None:
    lines = run_table(FIGURES).splitlines()
    assert "| lower bound on log p(image given caption), nats | -440.3 ± 5.1 | - |" in lines
    assert "| - the best possible: minus the entropy of the images | -324.9 | - |" in lines
    assert "| one digit, seen combinations: all right | 99 % | 100 % |" in lines
    assert "| structural similarity to the true image | 0.707 ± 0.016 | - |" in lines
    assert any("first of 100" in line and "| 28 % (23 to 34), chance 1 % | - |" in line for line in lines)
    assert not any("two digits" in line for line in lines)
    assert {line.count("|") for line in lines} == {4}
