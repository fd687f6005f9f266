"""Runs as they lie on the disk: the record that each keeps of itself, the table of all, and what one of them made.

A run's folder holds settings.toml, losses.csv, samples/STEP-N.png, the saved files, state/ and record.tuner. A folder without a record, of an older
version or a copy, is a run as well: what its record lacks is read from the other files.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .checkpoint import newest_step
from .config import build, flat_values, read_toml
from .disk import atomic, json_bytes
from .events import Event, Finished, Saved, Started, Stepped, Validated
from .live import finite
from .methods import METHODS, settings
from .methods.lora_file import ranks_of_blocks
from .progress import sentence
from .recorders import read_rows
from .settings import SAVE, TrainConfig, check_final

RECORD, SETTINGS, LOSSES = "record.tuner", "settings.toml", "losses.csv"  # JSON, but no .json: `run.json` is the card of a LoRA named run
FILES = (".safetensors", ".pt", ".png", ".ckpt")  # endings of what a person keeps
MEASURED = 20  # steps from which on their mean says something
PREVIEW = ".preview.png"  # the picture of a LoRA's card
_SAMPLE = re.compile(r"(\d+)-(\d+)\.png")


@dataclass(frozen=True)
class Record:
    """What a run says of itself; times in seconds since 1970, `seconds` of training over all its parts."""

    name: str = ""
    method: str = ""
    data: str = ""
    model: str = ""
    state: str = "unknown"  # running, done, stopped, nan, failed, interrupted
    step: int = 0
    steps: int = 0
    started: float = 0.0
    seconds: float = 0.0
    error: str = ""
    notes: str = ""
    words: str = ""  # what goes into the prompt: the trigger word, or the embeddings' names
    pictures: list[str] = field(default_factory=list)  # a few training pictures
    reports: dict[str, str] = field(default_factory=dict)  # saved file -> how the host reads it
    names: dict[str, str] = field(default_factory=dict)  # saved file -> its name in a prompt of the host, where that is not its own
    step_of_file: dict[str, int] = field(default_factory=dict)  # saved file that a person has renamed -> the step it is of
    speed: dict[str, Any] = field(default_factory=dict)  # what seconds per step depend on, and those


# ---- writing it ------------------------------------------------------------------------------------------------------

_WRITING = threading.Lock()  # a run's own thread and a person's note may come at the same moment


def record(events: Iterable[Event], cfg: TrainConfig, device: str = "") -> Iterator[Event]:
    """Passes a run's events through and keeps its record up to date; closing it closes the run. `device`: as in `Forecast.note`."""
    keeper = _Keeper(replace(_first(cfg), speed=speed_key(cfg, device)))
    try:
        for event in events:
            keeper.take(event)
            yield event
    except Exception as error:
        keeper.write(state="failed", error=sentence(error))
        raise
    finally:
        keeper.close()
        getattr(events, "close", lambda: None)()


class _Keeper:
    """The record of a run that goes. Notes and names of files belong to the person: they are read anew at each writing."""

    def __init__(self, first: Record):
        self.now, self.folder = first, None
        self.before, self.began = 0.0, 0.0  # seconds of earlier parts, start of this one
        self.last: float | None = None  # when the step before was done, if nothing else lay between
        self.times: deque[float] = deque(maxlen=1000)  # seconds from one step to the next

    def take(self, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, Stepped):
            if self.last is not None:
                self.times.append(now - self.last)
            self.last = now
            return
        self.last = None
        if isinstance(event, Started):
            self.start(event, now)
        elif isinstance(event, Saved):
            self.write({path.name: event.report for path in event.paths}, step=event.step, names={**self.now.names, **event.names})
        elif isinstance(event, Validated):
            self.write(step=event.step)
        elif isinstance(event, Finished):
            self.write(step=event.step, state=event.reason)

    def start(self, event: Started, now: float) -> None:
        self.folder, self.began = event.folder, now
        old = read_record(event.folder)
        self.before = old.seconds
        self.write(state="running", step=event.start, pictures=[str(p) for p in event.pictures], started=old.started or self.now.started, error="",
                   model=event.model or self.now.model, names=old.names)  # fmt: skip

    def write(self, reports: Mapping[str, str] = MappingProxyType({}), **change: Any) -> None:
        if self.folder is None:
            return
        speed = {**self.now.speed, "seconds_per_step": round(sum(self.times) / len(self.times), 4)} if len(self.times) >= MEASURED else self.now.speed
        self.now = replace(self.now, seconds=round(self.before + time.monotonic() - self.began, 2), speed=speed, **change)
        with _WRITING:
            disk = read_record(self.folder)
            known = {name: step for name, step in disk.step_of_file.items() if name not in reports}  # a file that is written anew is of this step
            self.now = replace(self.now, notes=disk.notes, reports={**disk.reports, **reports}, step_of_file=known)
            _write(self.folder, self.now)

    def close(self) -> None:
        """A run that was closed before its end says so."""
        if self.now.state == "running":
            self.write(state="interrupted")


def _first(cfg: TrainConfig) -> Record:
    words = METHODS[cfg.method](cfg).triggers() if cfg.method in METHODS else cfg.trigger
    return Record(cfg.name, cfg.method, Path(cfg.data.folder).name, Path(cfg.checkpoint).name or "embedded model", steps=cfg.steps, started=time.time(), words=words)


def _write(folder: Path, what: Record) -> None:
    with atomic(folder / RECORD) as temporary:
        temporary.write_bytes(json_bytes(asdict(what), indent=1))


def read_record(folder: Path) -> Record:
    """The record of a run; an empty one where there is none or it is damaged, which loses nothing but its notes."""
    try:
        values = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Record()
    known = {f.name for f in fields(Record)}
    return Record(**{key: value for key, value in values.items() if key in known}) if isinstance(values, dict) else Record()


# ---- reading it ------------------------------------------------------------------------------------------------------


def run_id(folder: Path) -> str:
    """A run's name in addresses: its folder's, which may occur in two output folders, so a hash of where it lies."""
    return uuid.uuid5(uuid.NAMESPACE_URL, str(folder.resolve())).hex[:12]


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, which one that cannot be looked into is not."""
    try:
        return (folder / SETTINGS).is_file()
    except OSError:  # up to Python 3.13
        return False


def listing(outputs: Iterable[Path]) -> list[dict[str, Any]]:
    """All runs in the output folders, the newest first, as rows of the history's table."""
    folders = {folder.resolve(): folder for output in outputs if output.is_dir() for folder in output.iterdir() if is_run(folder)}
    return sorted((row(folder) for folder in folders.values()), key=lambda r: r["started"], reverse=True)


def row(folder: Path, rows: list[Any] | None = None) -> dict[str, Any]:
    """One run in the table: its record, and the losses out of its CSV file (`rows`, where it has been read)."""
    run, rows = known_record(folder), read_rows(folder / LOSSES) if rows is None else rows
    validation = [r.validation for r in rows if r.validation is not None and math.isfinite(r.validation)]
    return {
        "folder": str(folder), **{key: getattr(run, key) for key in ("name", "method", "data", "model", "state", "step", "steps", "started", "notes", "error")},
        "seconds": run.seconds or (rows[-1].seconds if rows else 0.0), "loss": _recent(rows),
        "validation": validation[-1] if validation else None, "best": min(validation, default=None), "resumable": newest_step(folder) > 0 and run.state != "done",
    }


def known_record(folder: Path) -> Record:
    """The record of a run, what it lacks filled in from the settings and the files."""
    run = read_record(folder)
    if run.name:
        return run
    try:
        known = _first(settings_of(folder))  # a method may refuse today what it took when the run was made
    except (OSError, ValueError):
        return replace(run, name=folder.name, started=folder.stat().st_mtime)
    return replace(known, state="unknown", step=newest_step(folder), started=(folder / SETTINGS).stat().st_mtime)


def settings_of(folder: Path) -> TrainConfig:
    """The settings of a run. Raises ValueError or OSError."""
    return settings(read_toml(folder / SETTINGS))


def details(folder: Path) -> dict[str, Any]:
    """One run in full, of the form that a running one's status has: record, points, samples, saves, settings."""
    run, rows = known_record(folder), read_rows(folder / LOSSES)
    try:
        chosen = flat_values(settings_of(folder))
    except (OSError, ValueError):
        chosen = {}
    return {
        **row(folder, rows), "points": [[r.step, finite(r.loss), r.lr] for r in rows if r.loss is not None], "settings": chosen, "words": run.words,
        "validations": [[r.step, finite(r.validation)] for r in rows if r.validation is not None],
        "drifts": [[r.step, finite(r.drift)] for r in rows if r.drift is not None], "samples": samples(folder), "files": saved_files(folder),
        "training": list(range(len(run.pictures))), "prompts": chosen.get("sample.prompts", ""),
    }  # fmt: skip


def samples(folder: Path) -> list[dict[str, Any]]:
    """The sample pictures by step: [{step, pictures: [path in the folder]}]."""
    found: dict[int, list[tuple[int, str]]] = {}
    for path in (folder / "samples").glob("*.png"):
        if name := _SAMPLE.fullmatch(path.name):
            found.setdefault(int(name[1]), []).append((int(name[2]), f"samples/{path.name}"))
    return [{"step": step, "pictures": [path for _, path in sorted(found[step])]} for step in sorted(found)]


def saved_files(folder: Path) -> list[dict[str, Any]]:
    """What the run made for the user, the final files first.

    Each with name, bytes, step (None: the final one), how to use it, how the host reads it, and the ranks of its blocks where they differ.
    """
    run = known_record(folder)
    rows = []
    for path in filter(_is_saved, folder.iterdir()):
        step, now = run.step_of_file.get(path.name, step_of(path)), path.stat()
        more = {"use": use_text(run, path), "report": run.reports.get(path.name, ""), "ranks": _ranks(path, now.st_mtime_ns)}
        rows.append({"name": path.name, "bytes": now.st_size, "step": step, **more})
    return sorted(rows, key=lambda r: (r["step"] is not None, -(r["step"] or 0), r["name"]))


def _is_saved(path: Path) -> bool:
    return path.suffix in FILES and path.is_file() and not path.name.startswith(".") and not path.name.endswith(PREVIEW)


def saved_file(folder: Path, name: str) -> Path:
    """One of them. Raises ValueError for any other file of the run."""
    path = inside(folder, name)
    if path.parent != folder.resolve() or not _is_saved(path):
        raise ValueError(f"{name} is no saved file of {folder.name}; choose one of its files.")
    return path


@lru_cache(maxsize=512)
def _ranks(path: Path, written: int) -> dict[str, int]:
    """`ranks_of_blocks`, read once for each time at which the file was written: a page asks every second."""
    try:
        return ranks_of_blocks(path) if path.suffix == ".safetensors" else {}
    except (OSError, ValueError):  # no file of ours; how it is read is the report's to say
        return {}


def step_of(path: Path) -> int | None:
    """The step of a save, by its name; None for a final file."""
    save = SAVE.fullmatch(path.stem)
    return int(save[2]) if save else None


def use_text(run: Record, path: Path) -> str:
    """What a person writes into the prompt to use a file: `<lora:name:0.8> trigger`, `<hypernet:name:1> trigger`, or an embedding's name.

    Of a checkpoint the trigger alone; empty for a network that follows hints, which is chosen elsewhere.
    """
    kind = METHODS[run.method].file_kind(path) if run.method in METHODS else ""
    name = run.names.get(path.name, path.stem)
    if kind == "textual_inversion":
        return name
    if kind == "hypernetwork":
        return f"<hypernet:{name}:1> {run.words}".strip()
    if kind and not METHODS[kind].in_prompt:
        return run.words if kind == "dreambooth" else ""
    return f"<lora:{name}:0.8> {run.words}".strip()


def _recent(rows: list[Any]) -> float | None:
    """The mean loss of the last tenth of the steps (at least ten): a single step's says little."""
    losses = [r.loss for r in rows if r.loss is not None and math.isfinite(r.loss)]
    last = losses[-max(10, len(losses) // 10) :]
    return sum(last) / len(last) if last else None


# ---- changing it -----------------------------------------------------------------------------------------------------


def note(folder: Path, text: str) -> None:
    """Writes down what a person thinks of a run."""
    with _WRITING:
        _write(folder, replace(known_record(folder), notes=text))


def rename_file(folder: Path, name: str, new: str) -> Path:
    """Gives a saved file (with its card) another name. Raises ValueError where that is none or taken, or the file is no saved one."""
    path = saved_file(folder, name)
    target = renamed(path, new, known_record(folder).step_of_file.get(path.name, step_of(path)))
    if target != path and target.exists():
        raise ValueError(f"{target.name} exists already; choose another name.")
    for old in (path, *_beside(path)):
        old.rename(old.with_name(target.stem + old.name[len(path.stem) :]))
    with _WRITING:
        run = known_record(folder)
        step, known = run.step_of_file.get(path.name, step_of(path)), {key: value for key, value in run.step_of_file.items() if key != path.name}
        known |= {target.name: step} if step is not None and step_of(target) != step else {}
        _write(folder, replace(run, reports={(target.name if key == path.name else key): value for key, value in run.reports.items()}, step_of_file=known))
    return target


def renamed(path: Path, new: str, step: int | None = None) -> Path:
    """A saved file under another name. Raises ValueError where that is none: the rule for a run's name, but a save may be called as one of its own `step`."""
    target = path.with_name(build(TrainConfig, {"name": new}).name + path.suffix)
    if step is None or step_of(target) != step:
        check_final(new)
    return target


def delete_file(folder: Path, name: str) -> None:
    """Deletes a saved file with its card. Raises ValueError for any other file of the run."""
    path = saved_file(folder, name)
    beside = _beside(path)
    for file in (path, *beside):
        file.unlink()


def _beside(path: Path) -> list[Path]:
    """A LoRA's card and its picture, a checkpoint's description."""
    return [p for p in map(path.with_suffix, (".json", ".yaml", PREVIEW)) if p.is_file()] if path.suffix == ".safetensors" else []


def delete_run(folder: Path) -> None:
    """Deletes a run's folder with all that is in it. Raises ValueError for a folder that is no run's."""
    if not is_run(folder):
        raise ValueError(f"{folder} is not the folder of a run; nothing was deleted.")
    shutil.rmtree(folder)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of a run. Raises ValueError where there is none, or where the name leads out of the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        raise ValueError(f"{folder.name} has no file {name!r}.")
    return path


# ---- how long another one takes --------------------------------------------------------------------------------------


def speed_key(cfg: TrainConfig, device: str) -> dict[str, Any]:
    """What the seconds of a step depend on."""
    return {"model": Path(cfg.checkpoint).name, "method": cfg.method, "resolution": cfg.data.resolution, "batch": cfg.data.batch * cfg.optim.accumulate, "device": device, "prior": cfg.prior.weight > 0}


def seconds_per_step(outputs: Iterable[Path], cfg: TrainConfig, device: str) -> float | None:
    """What a step took in the newest finished run of the same kind; None where there is none."""
    wanted = speed_key(cfg, device)
    for found in listing(outputs):
        speed = read_record(Path(found["folder"])).speed
        if "seconds_per_step" in speed and wanted.items() <= speed.items():
            return speed["seconds_per_step"]
    return None
