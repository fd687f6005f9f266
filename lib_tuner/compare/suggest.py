"""Which saved step to take, by its numbers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .numbers import Row


@dataclass(frozen=True)
class Suggestion:
    """A step with one sentence why; `flags` names what is wrong with other steps (or with this one): underfitting, overfitting."""

    step: int
    why: str
    verdict: str = ""
    flags: dict[int, str] = field(default_factory=dict)


def suggest(rows: Sequence[Row]) -> Suggestion | None:
    saves = [row for row in rows if row.files]
    best = min(saves, key=lambda r: r.loss, default=None)
    return Suggestion(best.step, "x") if best else None
