"""Which saved step to take, by its numbers alone: how much of the subject was learned against how far the model drifted. Pure functions of rows.

Learned is how far the loss has fallen from the base model's. Of saves which have learned about the same the earliest is taken: what comes after it learns the
pictures by heart, which the loss shows late. A word moves nothing else, so there the one that has learned the most is taken (how often that is right:
`benchmarks/README.md`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .numbers import Row

UNDER, OVER = "underfitting", "overfitting"
NEARLY = 0.9  # of what the best save has learned: as good
LACKING = 0.85  # of it: much is missing, or lost again
FURTHER = 1.5  # times the drift
NOTHING = 0.02  # of the base model's loss: nothing was learned
RISING = 0.05  # of what was learned, since the save before: more is to come


@dataclass(frozen=True)
class Suggestion:
    """A step with one sentence why, None where none of them is worth taking. `verdict`: what is wrong with the run, "" where nothing is; `flags`: what is wrong with
    its other steps, by step."""

    step: int | None
    why: str
    verdict: str = ""
    flags: dict[int, str] = field(default_factory=dict)


def suggest(rows: Sequence[Row]) -> Suggestion | None:
    """The step to take of rows in the order of steps, the first that of the model before the run; None where there is no save."""
    base, saves = next((row for row in rows if not row.files), None), [row for row in rows if row.files]
    broken = {row.step: OVER for row in saves if not (math.isfinite(row.loss) and math.isfinite(row.drift))}
    saves = [row for row in saves if row.step not in broken]
    if base is None or not saves:
        return None
    found = _of_whole(base, saves)
    return replace(found, flags={**found.flags, **broken}, verdict=found.verdict or (OVER if broken else ""))


def _of_whole(base: Row, saves: Sequence[Row]) -> Suggestion:
    best = min(saves, key=lambda row: row.loss)
    learned = {row.step: (base.loss - row.loss) / max(base.loss - best.loss, 1e-12) for row in saves}
    if base.loss - best.loss < NOTHING * base.loss:
        return _nothing(base, best, saves)
    chosen = next(row for row in saves if learned[row.step] >= NEARLY) if any(row.drift for row in saves) else best
    flags = {row.step: flag for row in saves if row is not chosen and (flag := _flag(row, chosen, learned[row.step]))}
    verdict = UNDER if chosen is saves[-1] and _still_falling(saves, learned) else OVER if OVER in flags.values() else ""
    return Suggestion(chosen.step, _why(base, chosen, best, verdict), verdict, flags)


def _flag(row: Row, chosen: Row, learned: float) -> str:
    """A save before the chosen one that lacks much is underfitted; one after it that has lost much again, or has drifted further, overfitted."""
    if row.step < chosen.step:
        return OVER if learned < 0 and row.drift > FURTHER * chosen.drift else UNDER if learned < LACKING else ""
    return OVER if learned < LACKING or row.drift > FURTHER * chosen.drift else ""


def _still_falling(saves: Sequence[Row], learned: dict[int, float]) -> bool:
    steps = [row.step for row in saves]
    return len(steps) > 1 and learned[steps[-1]] - max(learned[step] for step in steps[:-1]) > RISING


def _nothing(base: Row, best: Row, saves: Sequence[Row]) -> Suggestion:
    """No save knows the pictures better than the base model: it was trained too little, or so fast that it broke."""
    broken = {row.step: OVER for row in saves if row.loss > base.loss * (1 + NOTHING)}
    if best.loss > base.loss or broken:
        why = f"Every save predicts the pictures no better than the model before the run (loss {best.loss:.4g}, before {base.loss:.4g}), and training made it worse: lower the learning rate."
        return Suggestion(None, why, OVER, broken)
    why = f"No save predicts the pictures clearly better than the model before the run (loss {best.loss:.4g}, before {base.loss:.4g}): underfitting, so train longer or at a higher rate."
    return Suggestion(None, why, UNDER, {row.step: UNDER for row in saves})


def _why(base: Row, chosen: Row, best: Row, verdict: str) -> str:
    fall = f"{base.loss:.4g} before the run to {chosen.loss:.4g}"
    if verdict == UNDER:
        return f"It is the last save and its loss was still falling, from {fall}: underfitting, so train longer for more."
    if verdict == OVER:
        return f"Its loss fell from {fall}; other saves are overfitting: they predict the pictures worse or have moved other prompts further."
    if chosen is best:
        return f"It has learned the most of all saves: its loss fell from {fall}."
    return f"It is the first save whose loss fell about as far as that of any, from {fall}; what comes after it learns the pictures by heart."
