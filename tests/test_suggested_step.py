"""Which step is suggested: tables of (step, loss, drift) and what comes of them."""

from __future__ import annotations

import pytest

from lib_tuner.compare.numbers import Row
from lib_tuner.compare.suggest import OVER, UNDER, suggest


def rows(base: float, *saves: tuple[int, float, float]) -> list[Row]:
    return [Row(0, (), base, None, 0.0, True), *(Row(step, ("file",), loss, None, drift, True) for step, loss, drift in saves)]


@pytest.mark.parametrize(("table", "step", "verdict", "flags", "said"), [
    # learns, and then no more: the first of those that know about the same
    ([(1, 0.2, 0.01), (2, 0.115, 0.02), (3, 0.1, 0.02), (4, 0.105, 0.021)], 2, "", {1: UNDER}, "the first save whose loss fell about as far as that of any, from 0.3 before the run to 0.115"),
    ([(1, 0.2, 0.01), (2, 0.1, 0.02)], 2, UNDER, {1: UNDER}, "still falling, from 0.3 before the run to 0.1: underfitting"),
    ([(1, 0.104, 0.02), (2, 0.1, 0.021)], 1, "", {}, "the first save whose loss fell about as far"),
    ([(1, 0.125, 0.02), (2, 0.1, 0.02), (3, 0.1, 0.02)], 2, "", {}, "It has learned the most of all saves: its loss fell from 0.3 before the run to 0.1."),
    # learns, and then forgets what it does not see
    ([(1, 0.15, 0.01), (2, 0.1, 0.02), (3, 0.14, 0.03), (4, 0.2, 0.05)], 2, OVER, {1: UNDER, 3: OVER, 4: OVER}, "other saves are overfitting"),
    ([(1, 0.1, 0.02), (2, 0.11, 0.04), (3, 0.11, 0.06)], 1, OVER, {2: OVER, 3: OVER}, "other saves are overfitting"),
    ([(1, 0.1, 0.02), (2, 0.16, 0.02), (3, 0.12, 0.02)], 1, OVER, {2: OVER}, "other saves are overfitting"),
    # a little less learned, and hardly moved
    ([(1, 0.106, 0.01), (2, 0.1, 0.05)], 1, OVER, {2: OVER}, "moved other prompts further"),
    ([(1, 0.125, 0.01), (2, 0.1, 0.05)], 2, UNDER, {}, "still falling"),
    # runs of `bench compare`: at a rate that is too high the first save is the best
    ([(80, 0.1428, 0.1184), (160, 0.157, 0.1632), (240, 0.176, 0.1756), (320, 0.153, 0.158)], 80, OVER, {240: OVER}, "other saves are overfitting"),
    ([(120, 0.1535, 0.077), (240, 0.1448, 0.0741), (360, 0.1546, 0.0693), (480, 0.1633, 0.0836)], 120, "", {}, "the first save"),
    # broken at first, and calm later
    ([(1, 0.45, 0.5), (2, 0.2, 0.1), (3, 0.195, 0.1)], 2, OVER, {1: OVER}, "other saves are overfitting"),
    # words do not drift
    ([(1, 0.2, 0.0), (2, 0.105, 0.0), (3, 0.1, 0.0), (4, 0.101, 0.0)], 3, "", {1: UNDER}, "learned the most"),
    # nothing, so that none of them is the one to take
    ([(1, 0.299, 0.0), (2, 0.298, 0.0)], None, UNDER, {1: UNDER, 2: UNDER}, "No save predicts the pictures clearly better"),
    ([(1, 0.5, 0.5), (2, 0.9, 1.0)], None, OVER, {1: OVER, 2: OVER}, "lower the learning rate"),
    ([(1, 0.299, 0.1), (2, 0.9, 1.0)], None, OVER, {2: OVER}, "lower the learning rate"),
    ([(7, 0.1, 0.02)], 7, "", {}, "learned the most"),
])  # fmt: skip
def test_tables(table, step, verdict, flags, said):
    found = suggest(rows(0.3, *table))
    assert (found.step, found.verdict, found.flags) == (step, verdict, flags)
    assert said in found.why and found.why.endswith(".") and found.why.count(". ") == 0


def test_without_a_save_nothing_is_suggested():
    assert suggest([]) is None and suggest(rows(0.3)) is None


def test_the_suggestion_looks_at_the_model_before_the_run():
    """The same saves after a model that knew nearly as much are no gain."""
    table = [(1, 0.105, 0.015), (2, 0.1, 0.02)]
    assert suggest(rows(0.3, *table)).verdict == "" and suggest(rows(0.1005, *table)).verdict == OVER


def test_a_broken_save_is_never_suggested():
    found = suggest(rows(0.3, (1, 0.1, 0.02), (2, float("nan"), 0.02), (3, 0.1, float("inf"))))
    assert (found.step, found.verdict, found.flags) == (1, OVER, {2: OVER, 3: OVER})
    assert suggest(rows(0.3, (1, float("nan"), 0.02))) is None
