"""The numbers of a run's saves and what they suggest, as the page and the command line show them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare.clip import found as found_clip
from .compare.numbers import Row, Saved, check, numbers, saves_of
from .compare.suggest import Suggestion, suggest
from .host import Host
from .live import finite
from .runs import known_record, saved_files, settings_of
from .settings import TrainConfig


def saves_in(folder: Path) -> list[Saved]:
    """The saved steps of a run; its final file is that of its last step. Raises ValueError where it has none."""
    cfg = settings_of(folder)
    last = known_record(folder).step or cfg.steps
    steps = {folder / file["name"]: last if file["step"] is None else file["step"] for file in saved_files(folder)}
    saves = saves_of(steps, steps, cfg.name, whole=True)
    if not saves:
        raise ValueError(f"{folder.name} has no saved file yet; train it to its first save, or name another run.")
    return saves


def measured(folder: Path, cfg: TrainConfig, make_host: Callable[[], Host], told: Callable[[int, int], Any]) -> dict[str, Any]:
    """Rows and suggestion as JSON has them; what was measured before is not measured again. Raises ValueError, one sentence, where there is nothing to measure."""
    check(cfg)
    saves = saves_in(folder)
    rows = []
    told(0, len(saves) + 1)
    for row in numbers(folder, cfg, saves, make_host(), found_clip()):
        rows.append(row)
        told(len(rows), len(saves) + 1)
    return {**as_json(rows, suggest(rows)), "run": folder.name}


def as_json(rows: Sequence[Row], found: Suggestion | None) -> dict[str, Any]:
    """Numbers and suggestion for a page or a script."""
    return {"rows": [_finite(row) for row in rows], "suggestion": asdict(found) if found else None}


def _finite(row: Row) -> dict[str, Any]:
    """A row without numbers that are none, which JSON has not: those of a save that is broken."""
    numbers = {name: finite(value) for name, value in (("loss", row.loss), ("gain", row.gain), ("drift", row.drift)) if value is not None}
    return {**asdict(row), **numbers, "more": {name: finite(value) for name, value in row.more.items()}}
