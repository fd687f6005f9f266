"""Comparisons as the page and scripts see them: what can be chosen, a grid that is being drawn, its cells as files, and keeping the save that was best.

A grid lies in `comparisons/NAME/` of the output folder: grid.json says what was asked for, each cell is a picture with its settings in it, grid.png is the
whole. The model is borrowed from the queue of runs for as long as it takes.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from . import runs
from .compare.applied import KINDS as FILE_KINDS
from .compare.applied import Use, forget
from .compare.cells import KINDS, NAMES, NONE, Axis, Cell, Choice, Offer, Plan, plan_grid
from .compare.draw import Interrupted, draw
from .compare.numbers import Asked, usable_kind
from .compare.numbers import saves_of as by_step
from .config import flat_values
from .disk import atomic
from .grid import Grid, Watched, earlier
from .host import GenerateRequest, Host
from .jobs import Jobs
from .keeping import Best, keep
from .measuring import measured
from .methods import METHODS, settings
from .settings import TrainConfig
from .toolbox import Toolbox
from .work import TURN, Stopped, Told, Work

FOLDER = "comparisons"
MANY = 100  # pictures from which on it is asked first
LONG = 15 * 60  # s, the same
MOST = 10000  # cells of a plan
RATES = "speed.json"  # of a host: seconds for each million of pixels and step


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


class Comparisons:
    """Those of one program. `samplers` are the host's, `own` the settings that its user has chosen; `published` puts a file that was kept where the host finds it; `decided` are settings of a run that are the host's own choice."""

    def __init__(self, jobs: Jobs, tools: Toolbox, samplers: Callable[[], Sequence[str]] = lambda: Offer.samplers,
                 published: Callable[[TrainConfig, Path], Any] = lambda cfg, path: None, decided: Sequence[str] = (), own: Callable[[], Mapping[str, Any]] = dict):  # fmt: skip
        self.jobs, self.tools, self.samplers, self.published, self.decided, self.own = jobs, tools, samplers, published, decided, own
        self.hosts = jobs.hosts
        self.home = jobs.home / FOLDER
        self.grid: Grid | None = None
        self.version = int(time.time() * 1000)  # of the next grid: never one that a page knows of an earlier one, or of an earlier program
        self.work: Work | None = None
        self._lock = threading.RLock()

    # ---- what can be chosen ------------------------------------------------------------------------------------------

    def offer(self) -> Offer:
        """Saves of runs and all other files that the host knows."""
        saves = [choice for output in self.jobs.outputs() if output.is_dir() for folder in sorted(output.iterdir()) if runs.is_run(folder) for choice in saves_of(folder)]
        own = {_file(use.path) for choice in saves for use in choice.uses}
        files = [Choice(Path(known["path"]), known["kind"]) for known in self.tools.files() if known["kind"] in (*FILE_KINDS, "checkpoint") and _file(Path(known["path"])) not in own]
        return Offer(tuple(sorted(saves, key=lambda choice: choice.order)), tuple(files), tuple(self.samplers()))

    def about(self) -> dict[str, Any]:
        """What a form needs: the axes with what each offers, the files, the runs that have saves."""
        offer = self.offer()
        known = {runs.run_id(Path(row["folder"])): row for row in self.jobs.history()}
        with_saves = {runs.run_id(choice.path.parent) for choice in offer.saves}
        return {
            "axes": [{"name": name, "label": kind.label, "help": kind.help, "lines": kind.lines, "offered": kind.offered(offer)} for name, kind in KINDS.items()],
            "files": [{"name": choice.label, "kind": choice.kind, "run": runs.run_id(choice.path.parent) if choice.run else ""} for choice in (*offer.saves, *offer.files)],
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
        checkpoint = str(self.tools.find(order.checkpoint)) if order.checkpoint else ""
        base = Cell(_request(order, offer.step, cfg.clip_skip), tuple(use for row in order.files for use in _uses(offer, *row)), checkpoint)
        if order.sampler not in offer.samplers and not any(axis.kind == "sampler" for axis in order.axes.values()):
            raise ValueError(f"There is no sampler {order.sampler!r}; choose one of the list.")
        unknown = [name for name in order.axes if name not in NAMES]
        if unknown:
            raise ValueError(f"{unknown[0]} is no axis; there are x, y and z.")
        return base, plan_grid(base, order.axes, offer, MOST), cfg

    def _settings(self, order: GridOrder) -> TrainConfig:
        """What a host is made with: as the run has it, or as the host would."""
        values = flat_values(runs.settings_of(self.jobs.folder_of(order.run))) if order.run else self.own()
        ours = ("resume", "webui.sampler", "webui.scheduler", "webui.hires_scale")  # sampler and size are the order's
        return settings({key: value for key, value in values.items() if key not in (*self.decided, *ours)})

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def start(self, order: GridOrder, sure: bool = False) -> dict[str, Any]:
        """Sets to work on a grid. Raises ValueError, also where there is much to draw and nobody has said that they are sure."""
        base, plan, cfg = self._planned(order)
        told = self._told(plan, cfg)
        if told["much"] and not sure:
            raise ValueError(f"This grid has {told['count']} pictures; say that you are sure, or take values away.")
        with self._lock:
            self._idle()
            self.grid = Grid(self._folder(), as_json(order), plan, base, self._next())
            self.grid.begin()
            return self._begin(self.grid, cfg, list(range(len(plan.cells))))

    def again(self, cells: Sequence[int], name: str = "") -> dict[str, Any]:
        """Draws some cells of the grid once more, such as a row. Raises ValueError."""
        with self._lock:
            grid = self._shown(name)
            self._idle()
            if not cells or not all(0 <= index < len(grid.states) for index in cells):
                raise ValueError("Those cells are not in this grid.")
            if changed := grid.changed_files(cells):
                raise ValueError(f"{changed[0].name} is another file since this grid was begun; draw a new grid.")
            cfg = self._settings(order_of(grid.order))
            for index in cells:
                grid.marked(index, "")
            return self._begin(grid, cfg, list(cells))

    def stop(self) -> None:
        """The grid ends after the picture that is being drawn."""
        if self.work:
            self.work.stop()

    def close(self, wait: float = 30.0) -> None:
        """The program ends."""
        if self.work:
            self.work.stop(wait)

    def _begin(self, grid: Grid, cfg: TrainConfig, wanted: list[int]) -> dict[str, Any]:
        self.work = Work("compare", lambda told: self._draw(grid, cfg, wanted, told)).start()
        return self.work.status()

    def _draw(self, grid: Grid, cfg: TrainConfig, wanted: list[int], told: Told) -> None:
        device, spent, size, number = "", 0.0, 0.0, 0

        def host(checkpoint: str) -> Host:
            nonlocal device
            own = self.hosts(cfg)
            made = own.on(Path(checkpoint)) if checkpoint else own
            made.waits = lambda: told(number, len(wanted), TURN)
            device = device or made.forecast().note
            return Watched(made, lambda model: entered("" if checkpoint else model))

        def entered(model: str) -> None:
            told(number, len(wanted))
            if model:
                grid.drawn_on(model)

        try:
            told(0, len(wanted))
            with self.jobs.lent(), closing(draw(grid.plan, host, wanted)) as cells:
                for number, drawn in enumerate(cells, 1):
                    grid.take(drawn)
                    if drawn.picture and number > 1:  # the first one has loaded the model, too
                        spent, size = spent + drawn.seconds, size + _size(grid.plan.cells[drawn.index])
                    told(number, len(wanted))
        except Interrupted:
            raise Stopped from None
        finally:
            forget()
            grid.settle(wanted)
            if size:
                self._learn(device, spent / size)
            grid.write()  # with what has failed
            if "drawn" in grid.states:
                grid.sheet()

    # ---- what there is -----------------------------------------------------------------------------------------------

    def status(self, known: int = -1) -> dict[str, Any]:
        """The work that goes or was last, and the grid; its cells only where they are newer than the version that is known."""
        grid, work = self.grid, self.work
        return {"work": work and work.status(), "grid": grid and grid.shown(known)}

    def cell(self, index: int, name: str = "") -> Path:
        """The picture of a cell. Raises ValueError where there is none."""
        return self._shown(name).there(index)

    def cell_details(self, index: int, name: str = "") -> dict[str, Any]:
        """What a cell was drawn with; a file that is another one now is not among those that can be kept. Raises ValueError."""
        grid = self._shown(name)
        grid.there(index)
        cell, changed = grid.plan.cells[index], grid.changed_files([index])
        if isinstance(cell, str):
            raise ValueError(cell)
        files = [{"name": use.path.name, "weight": use.weight, "run": runs.run_id(use.path.parent) if runs.is_run(use.path.parent) and use.path.is_file() and use.path not in changed else ""}
                 for use in cell.uses]  # fmt: skip
        return {"prompt": cell.request.prompt, "text": grid.text(index), "files": files}

    def sheet(self, name: str = "") -> Path:
        """The whole grid as one picture, made anew of the cells that are there. Raises ValueError."""
        return self._shown(name).sheet()

    def earlier(self) -> list[dict[str, Any]]:
        """The grids that were drawn here, the latest first."""
        return list(earlier(self.home))

    def open(self, name: str) -> dict[str, Any]:
        """Shows an earlier grid again. Raises ValueError where there is none of that name, or one is being drawn."""
        with self._lock:
            if self.work and self.work.going:
                raise ValueError("A comparison is at work already; wait until it is done, or stop it.")
            if name not in [row["name"] for row in self.earlier()]:
                raise ValueError(f"There is no grid {name!r}; choose one of the list.")
            self.grid = Grid.read(self.home / name, self._next())
            return self.grid.shown(-1)

    def _next(self) -> int:
        """A version that no page knows."""
        self.version = max(self.version, self.grid.version if self.grid else 0) + 1
        return self.version

    def _shown(self, name: str) -> Grid:
        """The grid, which a page may take for another one: somebody has drawn or opened this one since. Raises ValueError."""
        grid = self.grid
        if grid is None:
            raise ValueError("There is no grid yet; draw one first.")
        if name not in ("", grid.folder.name):
            raise ValueError(f"The grid {grid.folder.name} is shown now; open {name} again to go on with it.")
        return grid

    def _idle(self) -> None:
        if self.work and self.work.going:
            raise ValueError("A comparison is at work already; wait until it is done, or stop it.")
        self.jobs.check_free()

    def _folder(self) -> Path:
        stem = time.strftime("%Y-%m-%d")
        return next(folder for number in count(1) if not (folder := self.home / f"{stem}-{number:03d}").exists())

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def measure(self, run: str) -> dict[str, Any]:
        """Sets to work on the numbers of a run's saves; they are the work's result. Raises ValueError."""
        folder = self.jobs.folder_of(run)
        cfg = self._settings(GridOrder(run=run))

        def make(told: Told) -> dict[str, Any]:
            def host() -> Host:
                made = self.hosts(cfg)
                made.waits = lambda: told(0, 1, TURN)
                return made

            try:
                with self.jobs.lent():
                    return {**measured(folder, cfg, host, told), "id": run}
            finally:
                forget()

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
    """A run's saves that can be compared, by step: each with the words that were saved beside it."""
    try:
        cfg = runs.settings_of(folder)
    except (OSError, ValueError):
        return []
    rows = {folder / row["name"]: row["step"] for row in runs.saved_files(folder)}
    final = max((step for step in rows.values() if step is not None), default=0) + 1  # sorts behind all others
    asked, found = Asked(cfg), [Choice(path, "checkpoint", folder.name, step) for path, step in rows.items() if cfg.method == "dreambooth" and METHODS[cfg.method].file_kind(path) == "dreambooth"]
    for save in by_step([path for path in rows], {path: final if step is None else step for path, step in rows.items()}, cfg.name):
        first, *rest = sorted(asked.uses(save), key=lambda use: usable_kind(use.path) == "embedding")
        found.append(Choice(first.path, usable_kind(first.path), folder.name, None if save.step == final else save.step, first.word, tuple(rest)))
    return sorted(found, key=lambda choice: choice.order)


def as_json(order: GridOrder) -> dict[str, Any]:
    """An order as a client sends it."""
    return {**vars(order), "files": [{"name": name, "weight": weight, "blocks": blocks} for name, weight, blocks in order.files],
            "axes": {name: {"kind": axis.kind, "text": axis.text} for name, axis in order.axes.items()}}  # fmt: skip


def order_of(values: Mapping[str, Any]) -> GridOrder:
    """The order that `as_json` has written."""
    files = tuple((file["name"], file["weight"], file["blocks"]) for file in values["files"])
    return GridOrder(**{**values, "files": files, "axes": {name: Axis(**axis) for name, axis in values["axes"].items()}})


def _request(order: GridOrder, step: int, clip_skip: int) -> GenerateRequest:
    """Raises ValueError for a side that a host would round without a word."""
    for side in (order.width, order.height):
        if side % step:
            raise ValueError(f"{side} px is no multiple of {step} px, the side of a latent pixel; set one that is.")
    return GenerateRequest(order.prompt, order.negative, order.width, order.height, order.steps, order.cfg, order.sampler, order.seed, order.clip_skip or clip_skip)


def _uses(offer: Offer, name: str, weight: float, blocks: str) -> list[Use]:
    found = next((choice for choice in (*offer.saves, *offer.files) if name in (choice.label, choice.path.name, str(choice.path)) and choice.kind != "checkpoint"), None)
    if found is None:
        raise ValueError(f"{name} is no LoRA, embedding or hypernetwork here; choose one of the list.")
    return [replace(use, weight=weight, blocks=blocks) for use in found.uses]


def _file(path: Path) -> tuple[int, int] | None:
    """Which file it is: a save is linked into the WebUI's folder under another name."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_dev, now.st_ino


def _size(cell: Any) -> float:
    """What the seconds of a picture grow with: millions of pixels times steps."""
    return cell.request.width * cell.request.height * cell.request.steps / 1e6
