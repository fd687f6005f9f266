"""The end of a comparison: the save that was best becomes the run's file, with name, card and picture; and two runs beside each other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from . import runs
from .disk import atomic
from .methods import METHODS
from .methods.metadata import write_card

TRASH = "trash"
OTHERS = ("leave", "trash")
LARGEST = 512  # px, the longer side of a card's picture
_BESIDE = (".json", ".yaml", runs.PREVIEW, ".png", ".pt", ".safetensors", ".pt.optim", ".safetensors.optim")  # what may belong to a save


@dataclass(frozen=True)
class Best:
    """The file of a run that is kept. `name`: what it is called from now on; `words` and `weight`: what a click on its card puts into the prompt; `shown`: a picture for the card."""

    file: str
    name: str
    words: str = ""
    weight: float = 0.8
    notes: str = ""
    shown: Path | None = None
    others: str = "leave"


def keep(folder: Path, best: Best) -> dict[str, Any]:
    """Names the file, writes its card and preview, and moves the run's other saves to its trash, if that is asked for.

    Raises ValueError, before anything is changed, for a file that is not there and a name that cannot be or is taken by a file that stays; OSError.
    """
    steps = {row["name"]: row["step"] for row in runs.saved_files(folder)}
    if best.file not in steps:
        raise ValueError(f"{best.file} is no saved file of {folder.name}; choose one of its files.")
    if best.others not in OTHERS:
        raise ValueError(f"{best.others!r} is neither leave nor trash.")
    path = folder / best.file
    target = path if best.name == path.stem else runs.renamed(path, best.name)
    others = [folder / name for name, step in steps.items() if step != steps[best.file] and Path(name).stem != path.stem]  # what was saved with it stays with it
    taken = [folder / name for name in steps if Path(name).stem == target.stem != path.stem and not (best.others == "trash" and folder / name in others)]
    if taken:
        raise ValueError(f"{taken[0].name} exists already; choose another name, or let the other saves go to the trash.")
    trashed = [moved for other in others for moved in _trash(folder, other)] if best.others == "trash" else []
    if path.stem != target.stem:
        for one in [one for one in _family(path) if one.suffix in runs.FILES and not one.name.endswith(runs.PREVIEW)]:
            runs.rename_file(folder, one.name, target.stem)
    _describe(folder, target, best)
    return {"file": target.name, "trashed": len(trashed)}


def _describe(folder: Path, path: Path, best: Best) -> None:
    """The card that the WebUI shows of a LoRA: words, weight, notes, a picture. Of other files it shows none."""
    method = METHODS.get(runs.known_record(folder).method)
    if method is None or not method.in_prompt or method.file_kind(path) in ("textual_inversion", "hypernetwork"):
        return
    path.with_suffix(".json").unlink(missing_ok=True)  # that of the save in between; what a person has written now takes its place
    write_card(path, best.words, weight=best.weight, notes=best.notes)
    if best.shown is not None:
        with Image.open(best.shown) as picture, atomic(path.with_suffix(runs.PREVIEW)) as temporary:
            small = picture.convert("RGB")
            small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
            small.save(temporary, "PNG")


def _family(path: Path) -> list[Path]:
    """A save with what belongs to it."""
    return [one for ending in _BESIDE if (one := path.with_name(path.stem + ending)).is_file()]


def _trash(folder: Path, path: Path) -> list[Path]:
    """Moves a save with what belongs to it; nothing there is replaced."""
    place = folder / TRASH
    place.mkdir(exist_ok=True)
    moved = []
    for one in _family(path):
        free = next(target for number in count() if not (target := place / (one.name if not number else f"{one.stem}-{number}{one.suffix}")).exists())
        shutil.move(one, free)
        moved.append(free)
    return moved


def side_by_side(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two runs in full (`runs.details`): the settings that differ, and the curves of both."""
    a, b = first["settings"], second["settings"]
    names = [name for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name) and name not in ("name", "output", "resume")]
    curves = ("name", "points", "validations", "drifts", "seconds", "steps", "best", "method")
    return {"settings": [[name, a.get(name), b.get(name)] for name in names], "runs": [{key: run[key] for key in curves} for run in (first, second)]}
