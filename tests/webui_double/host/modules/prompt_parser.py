"""Brackets in prompts."""

from __future__ import annotations

import re
from itertools import groupby

_WEIGHT = r"(?::\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*)?"
_MARKS = re.compile(rf"\\(?P<escaped>.?)|(?P<open>[(\[])|(?P<round>{_WEIGHT}\))|(?P<square>\])|(?P<text>[^\\()\[\]:]+|:)", re.DOTALL)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_FACTORS = {"(": 1.1, "[": 1 / 1.1}


def parse_prompt_attention(text: str) -> list[list]:
    """[text, weight] of each part: (a) 1.1, (a:1.5) 1.5, [a] 1 / 1.1, and a backslash takes a bracket's meaning away. BREAK is a part of weight -1, times
    what stands around it."""
    parts: list[list] = []
    opened: list[tuple[str, int]] = []  # the bracket, and how many parts come before it

    def close(bracket: str, weight: str | None) -> bool:
        """Whether there is one to be closed; others inside it stay open."""
        at = max((i for i, (kind, _) in enumerate(opened) if kind == bracket), default=None)
        if at is None:
            return False
        for part in parts[opened.pop(at)[1] :]:
            part[1] *= float(weight or _FACTORS[bracket])
        return True

    for mark in _MARKS.finditer(text):
        kind, said = mark.lastgroup, mark[0]
        if kind == "open":
            opened.append((said, len(parts)))
        elif kind not in ("round", "square") or not close("(" if kind == "round" else "[", mark["weight"]):
            parts.extend(_plain(mark["escaped"] if kind == "escaped" else said))
    while opened:
        close(opened[-1][0], None)
    joined = [["".join(part[0] for part in same), weight] for (weight, _), same in groupby(parts, key=lambda part: (part[1], part[0] == "BREAK"))]
    return joined or [["", 1.0]]


def _plain(text: str) -> list[list]:
    """What BREAK divides; the space around it is gone."""
    first, *more = _BREAK.split(text)
    parts = [[first, 1.0]]
    for each in more:
        parts += [["BREAK", -1], [each, 1.0]]
    return [part for part in parts if part[0]]
