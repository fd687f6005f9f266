"""A grid as it lies on the disk while it is drawn: which cells there are, each as a picture with its settings in it, and the whole as one picture."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .compare.applied import Use
from .compare.cells import KINDS, NAMES, Cell, Plan, Value
from .compare.draw import Drawn, infotext, png_info
from .compare.numbers import known_fields
from .compare.sheet import compose
from .disk import atomic, json_bytes
from .host import Components, GenerateRequest, Host

SHEET, ORDER, CELLS = "grid.png", "grid.json", "cells.json"


@dataclass
class Grid:
    """A grid and how far it is. `order`: what was asked for, as JSON has it; `states` by cell: "" (not yet), drawn, or failed; `version` goes up with each change."""

    folder: Path
    order: dict[str, Any]
    plan: Plan
    base: Cell
    version: int
    states: list[str] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    model: str = ""  # the name of the one that was there when it was drawn
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def __post_init__(self) -> None:
        self.states = [""] * len(self.plan.cells)
        self.stamps = {path: _stamp(path) for cell in self.plan.cells if isinstance(cell, Cell) for path in _files(cell)}

    def picture(self, index: int) -> Path:
        """Where a cell's picture is."""
        return self.folder / f"cell-{index:04d}.png"

    def there(self, index: int) -> Path:
        """The picture of a cell. Raises ValueError where there is none."""
        if not 0 <= index < len(self.states) or not self.picture(index).is_file():
            raise ValueError("That picture is not there.")
        return self.picture(index)

    def changed_files(self, indices: Iterable[int]) -> list[Path]:
        """Files of these cells that are not what they were when the grid was planned: written anew, renamed, another in their place."""
        cells = [self.plan.cells[index] for index in indices]
        return [path for path in dict.fromkeys(path for cell in cells if isinstance(cell, Cell) for path in _files(cell)) if path.is_file() and _stamp(path) != self.stamps.get(path)]

    def drawn_on(self, model: str) -> None:
        """The model beside which cells without a checkpoint of their own are drawn. Raises ValueError where the others were drawn on another one."""
        if self.model and self.model != model:
            raise ValueError(f"This grid was drawn on {self.model}, and the model that is there is {model}: choose that one again, or draw a new grid.")
        self.model = model

    # ---- on the disk -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Makes the folder, which nobody else has. Raises OSError."""
        self.folder.mkdir(parents=True)
        self.write()

    def write(self) -> None:
        """What was asked for, and what each cell is, so that the grid can be opened again. Raises OSError."""
        with self._lock:
            axes = {name: {"kind": self.plan.axes[name][0], "labels": self.plan.labels(name)} for name in NAMES}
            stamps = {str(path): stamp for path, stamp in self.stamps.items()}
            values = {"axes": axes, "base": _written(self.base), "cells": list(map(_written, self.plan.cells)), "stamps": stamps, "errors": self.errors, "model": self.model}
        for name, content in ((ORDER, self.order), (CELLS, values)):
            with atomic(self.folder / name) as temporary:
                temporary.write_bytes(json_bytes(content, indent=1))

    @classmethod
    def read(cls, folder: Path, version: int) -> Grid:
        """A grid that was written, with the pictures that are there. Raises ValueError for a folder that holds none."""
        try:
            order, values = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (ORDER, CELLS))
            axes = {name: (values["axes"][name]["kind"], tuple(Value(label, None) for label in values["axes"][name]["labels"])) for name in NAMES}
            grid = cls(folder, order, Plan(axes, tuple(map(_read, values["cells"]))), _read(values["base"]), version)
            grid.stamps |= {Path(path): stamp and tuple(stamp) for path, stamp in values["stamps"].items()}
            grid.errors, grid.model = {int(index): str(error) for index, error in values["errors"].items()}, str(values.get("model", ""))
            if len(grid.states) != grid.plan.shape[0] * grid.plan.shape[1] * grid.plan.shape[2] or any(kind and kind not in KINDS for kind, _ in axes.values()):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{folder.name} holds no grid that can be opened; its pictures are still there ({folder}).") from None
        for index in range(len(grid.states)):
            grid.states[index] = "failed" if index in grid.errors else "drawn" if grid.picture(index).is_file() else ""
        return grid

    # ---- what happens to cells ---------------------------------------------------------------------------------------

    def marked(self, index: int, state: str, error: str = "") -> None:
        """A cell is in another state."""
        with self._lock:
            self.states[index] = state
            self.errors.pop(index, None)
            if error:
                self.errors[index] = error
            self.version += 1

    def take(self, drawn: Drawn) -> None:
        """A cell was drawn, or could not be. Raises OSError."""
        if drawn.picture is None:
            self.marked(drawn.index, "failed", drawn.error)
            return
        with atomic(self.picture(drawn.index)) as temporary:
            drawn.picture.save(temporary, "PNG", pnginfo=png_info(infotext(self.plan.cells[drawn.index], of_host=drawn.picture.info.get("parameters", ""))))
        self.marked(drawn.index, "drawn")

    def settle(self, indices: Iterable[int]) -> None:
        """Cells that were to be drawn once more and were not are what they were."""
        for index in indices:
            if not self.states[index] and self.picture(index).is_file():
                self.marked(index, "drawn")

    # ---- what is shown -----------------------------------------------------------------------------------------------

    def shown(self, known: int) -> dict[str, Any]:
        """For a page; its cells only where their version is another than the one that is known."""
        with self._lock:
            told: dict[str, Any] = {"name": self.folder.name, "folder": str(self.folder), "version": self.version, "count": len(self.states)}
            if known == self.version:
                return told
            kinds = {name: KINDS[kind].label for name in NAMES if (kind := self.plan.axes[name][0])}
            return {**told, "shape": list(self.plan.shape), "labels": {name: self.plan.labels(name) for name in NAMES}, "kinds": kinds, "states": list(self.states),
                    "errors": dict(self.errors), "order": self.order}  # fmt: skip

    def text(self, index: int) -> str:
        """The settings with which a cell was drawn, as its picture has them. Raises ValueError."""
        with Image.open(self.there(index)) as picture:
            return str(picture.info.get("parameters", ""))

    def sheet(self) -> Path:
        """The whole as one picture, made anew of the cells that are there. Raises ValueError, OSError."""
        with self._lock:
            pictures, errors = [path if (path := self.picture(index)).is_file() else None for index in range(len(self.states))], dict(self.errors)
        if not any(pictures):
            raise ValueError("No picture of this grid has been drawn.")
        axes = ", ".join(f"{name.upper()} Type: {KINDS[kind].label}, {name.upper()} Values: \"{'; '.join(self.plan.labels(name))}\"" for name in NAMES if (kind := self.plan.axes[name][0]))
        text = infotext(self.base) + (f", Script: X/Y/Z plot, {axes}" if axes else "")
        with atomic(self.folder / SHEET) as temporary:
            compose(self.plan, pictures, errors).save(temporary, "PNG", pnginfo=png_info(text))
        return self.folder / SHEET


class Watched:
    """A host that says on which model it is, each time that it is entered."""

    def __init__(self, host: Host, entered: Callable[[str], None]):
        self._host, self._entered = host, entered

    @contextmanager
    def exclusive(self) -> Iterator[Components]:
        with self._host.exclusive() as sd:
            self._entered(f"{sd.model_name} [{sd.model_hash[:10]}]")
            yield sd

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_size, now.st_mtime_ns


def earlier(home: Path) -> Iterator[dict[str, Any]]:
    """The grids in a folder, the latest first: name, prompt, what changes in it, how many pictures there are."""
    for folder in sorted((path.parent for path in home.glob(f"*/{CELLS}")), key=lambda path: path.name, reverse=True):
        try:
            order = json.loads((folder / ORDER).read_text(encoding="utf-8"))
            kinds = [KINDS[axis["kind"]].label for name in NAMES if (axis := order["axes"].get(name)) and axis["kind"]]
            yield {"name": folder.name, "prompt": str(order["prompt"]), "kinds": kinds, "pictures": len(list(folder.glob("cell-*.png")))}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue


def _files(cell: Cell) -> list[Path]:
    """All that a cell is made of."""
    return [*(use.path for use in cell.uses), *([Path(cell.checkpoint)] if cell.checkpoint else [])]


def _written(cell: Cell | str) -> Any:
    return cell if isinstance(cell, str) else {**asdict(cell), "uses": [{**asdict(use), "path": str(use.path)} for use in cell.uses]}


def _read(values: Any) -> Any:
    if isinstance(values, str):
        return values
    return Cell(GenerateRequest(**known_fields(GenerateRequest, values["request"])), tuple(Use(**{**known_fields(Use, use), "path": Path(use["path"])}) for use in values["uses"]), values["checkpoint"])
