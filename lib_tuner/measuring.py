"""The numbers of a run's saves and what they suggest, as the page and the command line show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .compare.clip import found as found_clip
from .compare.numbers import Saved, check, numbers, saves_of
from .compare.suggest import suggest
from .host import Host
from .live import finite
from .runs import known_record, saved_files, settings_of
from .settings import TrainConfig


def saves_in(folder: Path) -> list[Saved]:
    """The saved steps of a run; its final file is that of its last step."""
    last = known_record(folder).step or settings_of(folder).steps
    steps = {folder / file["name"]: last if file["step"] is None else file["step"] for file in saved_files(folder)}
    return saves_of(steps, steps)


def measured(folder: Path, cfg: TrainConfig, make_host: Callable[[], Host], told: Callable[[int, int], Any]) -> dict[str, Any]:
    """Rows and suggestion as JSON has them; what was measured before is not measured again. Raises ValueError, one sentence, where there is nothing to measure."""
    check(cfg)
    saves = saves_in(folder)
    if not saves:
        raise ValueError(f"{folder.name} has no saved file yet; train it to its first save, or name another run.")
    rows = []
    told(0, len(saves) + 1)
    for row in numbers(folder, cfg, saves, make_host(), found_clip()):
        rows.append(row)
        told(len(rows), len(saves) + 1)
    found = suggest(rows)
    return {"rows": [{**asdict(row), "loss": finite(row.loss), "drift": finite(row.drift)} for row in rows], "suggestion": asdict(found) if found else None, "run": folder.name}
