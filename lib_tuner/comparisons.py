"""Comparisons as the page and scripts see them: what can be chosen, a grid that is being drawn, its cells as files, and keeping the save that was best.

A grid lies in `comparisons/NAME/` of the output folder: grid.json says what was asked for, each cell is a picture with its settings in it, grid.png is the
whole. The model is borrowed from the queue of runs for as long as it takes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from . import runs
from .compare.applied import KINDS as FILE_KINDS
from .compare.applied import Use
from .compare.cells import KINDS, NAMES, NONE, Axis, Cell, Choice, Offer, Plan, plan_grid
from .compare.draw import Drawn, draw, infotext, png_info
from .compare.sheet import compose
from .config import flat_values
from .disk import atomic
from .host import GenerateRequest, Host
from .jobs import Jobs, run_id
from .keeping import Best, keep
from .measuring import measured
from .methods import METHODS, settings
from .settings import TrainConfig
from .toolbox import Toolbox
from .work import Told, Work

FOLDER, ORDER, SHEET = "comparisons", "grid.json", "grid.png"
MANY = 100  # pictures from which on it is asked first
LONG = 15 * 60  # s, the same
MOST = 10000  # cells of a plan
RATES = "speed.json"  # of a host: seconds for each million of pixels and step
_OF_METHOD = {"textual_inversion": "embedding", "hypernetwork": "hypernetwork", "dreambooth": "checkpoint", "controlnet": "", "t2i_adapter": ""}


@dataclass(frozen=True)
class GridOrder:
    """What somebody asks for. `files`: names in the list, each with weight and block weights; `run`: whose model and settings it is drawn with ("" is the host's own)."""

    prompt: str = ""
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "ddim"
    seed: int = 1
    clip_skip: int = 0
    run: str = ""
    checkpoint: str = ""
    files: tuple[tuple[str, float, str], ...] = ()
    axes: Mapping[str, Axis] = field(default_factory=dict)


@dataclass
class Grid:
    """A grid and how far it is. `states` by cell: "" (not yet), drawn, or failed; `errors` by index; `version` goes up with each change."""

    folder: Path
    order: GridOrder
    plan: Plan
    base: Cell
    states: list[str]
    errors: dict[int, str] = field(default_factory=dict)
    version: int = 0
    model: str = ""

    def picture(self, index: int) -> Path:
        """Where a cell's picture is."""
        return self.folder / f"cell-{index:04d}.png"

    def marked(self, index: int, state: str, error: str = "") -> None:
        self.states[index] = state
        self.errors.pop(index, None)
        if error:
            self.errors[index] = error
        self.version += 1


class Comparisons:
    """Those of one program. `samplers` are the host's; `published` puts a file that was kept where the host finds it; `decided` are settings of a run that are the host's own choice."""

    def __init__(self, jobs: Jobs, tools: Toolbox, samplers: Callable[[], Sequence[str]] = lambda: Offer.samplers,
                 published: Callable[[TrainConfig, Path], Any] = lambda cfg, path: None, decided: Sequence[str] = ()):  # fmt: skip
        self.jobs, self.tools, self.samplers, self.published, self.decided = jobs, tools, samplers, published, decided
        self.hosts = jobs.hosts
        self.home = jobs.home / FOLDER
        self.grid: Grid | None = None
        self.work: Work | None = None
        self._lock = threading.RLock()

    # ---- what can be chosen ------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """Saves of runs and all other files that the host knows."""
        saves = [choice for output in self.jobs.outputs() if output.is_dir() for folder in sorted(output.iterdir()) if runs.is_run(folder) for choice in saves_of(folder)]
        own = {choice.path.resolve() for choice in saves}
        files = [Choice(Path(known["path"]), known["kind"]) for known in self.tools.files() if known["kind"] in (*FILE_KINDS, "checkpoint") and Path(known["path"]).resolve() not in own]
        return Offer(tuple(sorted(saves, key=lambda choice: choice.order)), tuple(files), tuple(self.samplers()))

    def about(self) -> dict[str, Any]:
        """What a form needs: the axes with what each offers, the files, the runs that have saves."""
        offer = self.offer()
        known = {run_id(Path(row["folder"])): row for row in self.jobs.history()}
        with_saves = {run_id(choice.path.parent) for choice in offer.saves}
        return {
            "axes": [{"name": name, "label": kind.label, "help": kind.help, "lines": kind.lines, "offered": kind.offered(offer)} for name, kind in KINDS.items()],
            "files": [{"name": choice.label, "kind": choice.kind, "run": run_id(choice.path.parent) if choice.run else ""} for choice in (*offer.saves, *offer.files)],
            "samplers": list(offer.samplers),
            "runs": [{"id": id, "name": Path(row["folder"]).name, "method": row["method"], "words": runs.known_record(Path(row["folder"])).words} for id, row in known.items() if id in with_saves],
        }

    def suggested(self, run: str) -> dict[str, Any]:
        """A first order for a run: its own sample prompt and size, its saves beside each other, and a few seeds. Raises ValueError."""
        folder = self.jobs.folder_of(run)
        cfg = runs.settings_of(folder)
        lines = [line.strip() for line in cfg.sample.prompts.splitlines() if line.strip()]
        prompt = (lines or ["a picture of [name]"])[0].replace("[name]", runs.known_record(folder).words)
        s, side = cfg.sample, cfg.data.resolution
        sampler = cfg.webui.sampler if cfg.webui.sampler in self.samplers() else s.sampler
        axes = {"x": Axis("step", ", ".join([NONE, *(choice.label for choice in saves_of(folder))])), "y": Axis("seed", "1-3")}
        return as_json(GridOrder(prompt, s.negative, s.width or side, s.height or side, s.steps, s.cfg, sampler, run=run, axes=axes))

    # ---- planning ----------------------------------------------------------------------------------------------------

    def plan(self, order: GridOrder) -> dict[str, Any]:
        """What would be drawn, how long it would take if that is known, and the question where it is much. Raises ValueError."""
        _, plan, cfg = self._planned(order)
        return self._told(plan, cfg)

    def _told(self, plan: Plan, cfg: TrainConfig) -> dict[str, Any]:
        cells = [cell for cell in plan.cells if isinstance(cell, Cell)]
        rate = self._rates().get(self._device(cfg))
        seconds = None if rate is None else sum(map(_size, cells)) * rate
        much = len(cells) > MANY or (seconds or 0) > LONG
        return {"count": len(plan.cells), "shape": list(plan.shape), "labels": {name: plan.labels(name) for name in NAMES}, "problems": list(plan.problems),
                "failing": len(plan.cells) - len(cells), "seconds": seconds, "much": much}  # fmt: skip

    def _planned(self, order: GridOrder) -> tuple[Cell, Plan, TrainConfig]:
        offer = self.offer()
        cfg = self._settings(order)
        base = Cell(_request(order), tuple(_use(offer, *row) for row in order.files))
        unknown = [name for name in order.axes if name not in NAMES]
        if unknown:
            raise ValueError(f"{unknown[0]} is no axis; there are x, y and z.")
        return base, plan_grid(base, order.axes, offer, MOST), cfg

    def _settings(self, order: GridOrder) -> TrainConfig:
        """What a host is made with: as the run has it, or as the host would."""
        values = flat_values(runs.settings_of(self.jobs.folder_of(order.run))) if order.run else {}
        cfg = settings({key: value for key, value in values.items() if key not in (*self.decided, "resume", "webui.sampler")})  # the sampler is the order's
        return replace(cfg, checkpoint=str(self.tools.find(order.checkpoint))) if order.checkpoint else cfg

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def start(self, order: GridOrder, sure: bool = False) -> dict[str, Any]:
        """Sets to work on a grid. Raises ValueError, also where there is much to draw and nobody has said that they are sure."""
        base, plan, cfg = self._planned(order)
        told = self._told(plan, cfg)
        if told["much"] and not sure:
            raise ValueError(f"This grid has {told['count']} pictures; say that you are sure, or take values away.")
        with self._lock:
            self._idle()
            self.grid = Grid(self._folder(), order, plan, base, [""] * len(plan.cells))
            self._write_order()
            return self._begin(cfg, range(len(plan.cells)))

    def again(self, cells: Sequence[int]) -> dict[str, Any]:
        """Draws some cells of the grid once more, such as a row. Raises ValueError."""
        with self._lock:
            grid = self._shown()
            self._idle()
            if not cells or not all(0 <= index < len(grid.states) for index in cells):
                raise ValueError("Those cells are not in this grid.")
            for index in cells:
                grid.marked(index, "")
            return self._begin(self._settings(grid.order), list(cells))

    def stop(self) -> None:
        """The grid ends after the picture that is being drawn."""
        if self.work:
            self.work.stop()

    def close(self, wait: float = 30.0) -> None:
        """The program ends."""
        if self.work:
            self.work.stop(wait)

    def _begin(self, cfg: TrainConfig, wanted: Iterable[int]) -> dict[str, Any]:
        grid, wanted = self._shown(), list(wanted)
        self.work = Work("compare", lambda told: self._draw(grid, cfg, wanted, told)).start()
        return self.work.status()

    def _draw(self, grid: Grid, cfg: TrainConfig, wanted: list[int], told: Told) -> None:
        told(0, len(wanted))
        device, spent, size = "", 0.0, 0.0

        def host(checkpoint: str) -> Host:
            nonlocal device
            made = self.hosts(replace(cfg, checkpoint=checkpoint) if checkpoint else cfg)
            device = device or made.forecast().note
            return made

        try:
            with self.jobs.lent(), closing(draw(grid.plan, host, wanted)) as cells:
                for number, drawn in enumerate(cells, 1):
                    self._keep(grid, drawn)
                    if drawn.picture and number > 1:  # the first one has loaded the model, too
                        spent, size = spent + drawn.seconds, size + _size(grid.plan.cells[drawn.index])
                    told(number, len(wanted))
        finally:
            if size:
                self._learn(device, spent / size)
            if "drawn" in grid.states:
                self._sheet(grid)

    def _keep(self, grid: Grid, drawn: Drawn) -> None:
        if drawn.picture is None:
            grid.marked(drawn.index, "failed", drawn.error)
            return
        with atomic(grid.picture(drawn.index)) as temporary:
            drawn.picture.save(temporary, "PNG", pnginfo=png_info(infotext(grid.plan.cells[drawn.index])))
        grid.marked(drawn.index, "drawn")

    # ---- what there is -----------------------------------------------------------------------------------------------

    def status(self, known: int = -1) -> dict[str, Any]:
        """The work that goes or was last, and the grid; its cells only where they are newer than the version that is known."""
        with self._lock:
            grid, work = self.grid, self.work and self.work.status()
            if grid is None:
                return {"work": work, "grid": None}
            shown: dict[str, Any] = {"name": grid.folder.name, "folder": str(grid.folder), "version": grid.version, "count": len(grid.states)}
            if known != grid.version:
                shown |= {"shape": list(grid.plan.shape), "labels": {name: grid.plan.labels(name) for name in NAMES}, "states": list(grid.states),
                          "kinds": {name: KINDS[kind].label for name in NAMES if (kind := grid.plan.axes[name][0])}, "errors": dict(grid.errors), "order": as_json(grid.order)}  # fmt: skip
            return {"work": work, "grid": shown}

    def cell(self, index: int) -> Path:
        """The picture of a cell. Raises ValueError where there is none."""
        with self._lock:
            grid = self._shown()
            if not 0 <= index < len(grid.states) or not grid.picture(index).is_file():
                raise ValueError("That picture is not there.")
            return grid.picture(index)

    def cell_details(self, index: int) -> dict[str, Any]:
        """What a cell was drawn with. Raises ValueError."""
        with self._lock:
            grid = self._shown()
            cell = grid.plan.cells[index] if 0 <= index < len(grid.states) else "That picture is not there."
            if isinstance(cell, str):
                raise ValueError(cell)
            files = [{"name": use.path.name, "weight": use.weight, "run": run_id(use.path.parent) if runs.is_run(use.path.parent) else ""} for use in cell.uses]
            return {"prompt": cell.request.prompt, "text": infotext(cell), "files": files}

    def sheet(self) -> Path:
        """The whole grid as one picture, made anew of the cells that are there. Raises ValueError."""
        with self._lock:
            return self._sheet(self._shown())

    def _sheet(self, grid: Grid) -> Path:
        pictures = []
        for index in range(len(grid.states)):
            if grid.picture(index).is_file():
                with Image.open(grid.picture(index)) as picture:
                    pictures.append(picture.convert("RGB"))
            else:
                pictures.append(None)
        if not any(pictures):
            raise ValueError("No picture of this grid has been drawn.")
        axes = ", ".join(f"{name.upper()} Type: {KINDS[kind].label}, {name.upper()} Values: \"{'; '.join(grid.plan.labels(name))}\"" for name in NAMES if (kind := grid.plan.axes[name][0]))
        with atomic(grid.folder / SHEET) as temporary:
            text = infotext(grid.base) + (f", Script: X/Y/Z plot, {axes}" if axes else "")
            compose(grid.plan, pictures, grid.errors).save(temporary, "PNG", pnginfo=png_info(text))
        return grid.folder / SHEET

    def _shown(self) -> Grid:
        if self.grid is None:
            raise ValueError("There is no grid yet; draw one first.")
        return self.grid

    def _idle(self) -> None:
        if self.work and self.work.going:
            raise ValueError("A comparison is at work already; wait until it is done, or stop it.")

    def _folder(self) -> Path:
        stem = time.strftime("%Y-%m-%d")
        return next(folder for number in count(1) if not (folder := self.home / f"{stem}-{number:03d}").exists())

    def _write_order(self) -> None:
        grid = self._shown()
        grid.folder.mkdir(parents=True)
        with atomic(grid.folder / ORDER) as temporary:
            temporary.write_text(json.dumps(as_json(grid.order), indent=1, ensure_ascii=False), encoding="utf-8")

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def measure(self, run: str) -> dict[str, Any]:
        """Sets to work on the numbers of a run's saves; they are the work's result. Raises ValueError."""
        folder = self.jobs.folder_of(run)
        cfg = self._settings(GridOrder(run=run))

        def make(told: Told) -> dict[str, Any]:
            with self.jobs.lent():
                return {**measured(folder, cfg, lambda: self.hosts(cfg), told), "id": run}

        with self._lock:
            self._idle()
            self.work = Work("numbers", make).start()
            return self.work.status()

    # ---- the best one ------------------------------------------------------------------------------------------------

    def keep(self, run: str, best: Best) -> dict[str, Any]:
        """Makes a save the run's file, which the host finds under its new name. Raises ValueError, OSError."""
        folder = self.jobs.folder_of(run)
        kept = keep(folder, best)
        self.jobs.files_changed(folder)
        self.published(runs.settings_of(folder), folder / kept["file"])
        return kept

    # ---- how long ----------------------------------------------------------------------------------------------------

    def _device(self, cfg: TrainConfig) -> str:
        return self.hosts(cfg).forecast().note

    def _rates(self) -> dict[str, float]:
        try:
            values = json.loads((self.home / RATES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: value for key, value in values.items() if isinstance(value, float)} if isinstance(values, dict) else {}

    def _learn(self, device: str, rate: float) -> None:
        with atomic(self.home / RATES) as temporary:
            temporary.write_text(json.dumps({**self._rates(), device: rate}, indent=1), encoding="utf-8")


def saves_of(folder: Path) -> list[Choice]:
    """A run's saves that can be compared, by step."""
    method = METHODS.get(runs.known_record(folder).method)
    if method is None:
        return []
    found = []
    for row in runs.saved_files(folder):
        path = folder / row["name"]
        if path.suffix == ".png" or path.suffix == ".pt" and path.with_suffix(".safetensors").is_file():
            continue  # an embedding's other forms
        kind = _OF_METHOD.get(method.file_kind(path), "lora")
        if kind:
            found.append(Choice(path, kind, folder.name, row["step"]))
    return sorted(found, key=lambda choice: choice.order)


def as_json(order: GridOrder) -> dict[str, Any]:
    """An order as a client sends it."""
    return {**vars(order), "files": [{"name": name, "weight": weight, "blocks": blocks} for name, weight, blocks in order.files],
            "axes": {name: {"kind": axis.kind, "text": axis.text} for name, axis in order.axes.items()}}  # fmt: skip


def _request(order: GridOrder) -> GenerateRequest:
    return GenerateRequest(order.prompt, order.negative, order.width, order.height, order.steps, order.cfg, order.sampler, order.seed, order.clip_skip)


def _use(offer: Offer, name: str, weight: float, blocks: str) -> Use:
    found = next((choice for choice in (*offer.saves, *offer.files) if name in (choice.label, choice.path.name, str(choice.path)) and choice.kind != "checkpoint"), None)
    if found is None:
        raise ValueError(f"{name} is no LoRA, embedding or hypernetwork here; choose one of the list.")
    return Use(found.path, weight, blocks)


def _size(cell: Any) -> float:
    """What the seconds of a picture grow with: millions of pixels times steps."""
    return cell.request.width * cell.request.height * cell.request.steps / 1e6
