"""The values of an axis as a person types them, in the notation of the WebUI's X/Y/Z plot (scripts/xyz_grid.py).

    a, b, "c, d"      three texts; a line end is a comma too, a trailing comma is harmless
    1-5               1, 2, 3, 4, 5              1-5 (+2)      1, 3, 5           10-5 (-3)     10, 7
    1-10 [4]          four numbers, evenly spread, both ends among them
"""

from __future__ import annotations

import csv
import math
import re
from io import StringIO

MOST = 1000  # numbers of one range
LONGEST = 100_000  # letters of an axis
_NUMBER = r"([+-]?\s*\d+(?:\.\d*)?)"
_STEPS = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}(?:\s*\(\s*([+-]\s*\d+(?:\.\d*)?)\s*\))?\s*")
_COUNT = re.compile(rf"\s*{_NUMBER}\s*-\s*{_NUMBER}\s*\[\s*(\d+)\s*\]\s*")


def texts(line: str) -> tuple[list[str], int]:
    """The texts of a line (at most LONGEST letters, else ValueError, a clause), and how many places between commas hold nothing; what is empty at the end of a line does not count."""
    found: list[str] = []
    if len(line) > LONGEST:
        raise ValueError(f"its values have {len(line):,} letters, and {LONGEST:,} are the most")
    for row in csv.reader(StringIO("\n".join(line.splitlines())), skipinitialspace=True):
        row = [text.strip() for text in row]
        while row and not row[-1]:
            row.pop()
        found += row
    kept = [text for text in found if text]
    return kept, len(found) - len(kept)


def numbers(text: str, whole: bool) -> list[float]:
    """One number or a range of them; `whole`: 1-10 [4] is rounded. Raises ValueError, a clause."""
    if len(text) > 100:
        raise ValueError(f"{text[:20]!r}… is too long for a number or a range")
    if found := _COUNT.fullmatch(text):
        return _spread(_number(found[1]), _number(found[2]), int(found[3]), whole)
    if found := _STEPS.fullmatch(text):
        first, last = _number(found[1]), _number(found[2])
        return _stepped(text, first, last, _number(found[3]) if found[3] else math.copysign(1.0, last - first))
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is no number and no range such as 1-5, 1-10 (+3) or 0-1 [5]")
    return [number]


def _number(text: str) -> float:
    return float(re.sub(r"\s", "", text))


def _stepped(text: str, first: float, last: float, step: float) -> list[float]:
    if not step or (last - first) * step < 0:
        raise ValueError(f"{text!r} never gets from its first number to its last; give its step the other sign")
    count = math.floor((last - first) / step + 1e-6) + 1
    _few(text, count)
    return [round(first + i * step, 6) for i in range(count)]


def _spread(first: float, last: float, count: int, whole: bool) -> list[float]:
    _few(f"{first:g}-{last:g} [{count}]", count)
    if count < 2:
        return [first] * count
    found = [first + (last - first) * i / (count - 1) for i in range(count)]
    return [round(number, 0 if whole else 6) for number in found]


def _few(text: str, count: int) -> None:
    if count > MOST:
        raise ValueError(f"{text!r} is {count} numbers; write a range of at most {MOST}")
