"""The tools for the page and for scripts: what each asks, what files there are, and the one job that goes, in a thread of its own.

A job needs the memory of a few tensors and no GPU, so it may go beside a run; two jobs would only wait for the same disk.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .config import meant
from .disk import expanded, json_values
from .progress import sentence
from .runs import is_run
from .settings import TrainConfig
from .tools.arguments import NO_LORA, Argument
from .tools.catalogue import TOOLS
from .tools.command import Exists, Made, Tool
from .tools.export_tiny import TINY
from .tools.recipe import read_recipe, weighted_rows, write_recipe
from .tools.shelves import Known, Shelf, kind_in, scan
from .work import Stopped

LOG = logging.getLogger("lib_tuner")
GOING = ("running", "stopping")
LONGEST = 120  # letters of a proposed name


class Folders(Protocol):
    """Where a host keeps files."""

    def shelves(self) -> Iterable[Shelf]: ...
    def target(self, kind: str) -> Path: ...  # where a new file of a kind goes
    def made(self, path: Path, kind: str, replaced: bool) -> None: ...  # it is there: the host lists it from now on


@dataclass(frozen=True)
class OwnFolders:
    """The folders of the program alone: what lies in `models` and `embeddings` where it was started, and its output folder."""

    home: Path
    more: tuple[Path, ...] = ()  # single files

    def shelves(self) -> Iterable[Shelf]:
        known = {"models/Stable-diffusion": "checkpoint", "models/Lora": "lora", "models/hypernetworks": "hypernetwork", "models/ControlNet": "control",
                 "models/VAE": "vae", "embeddings": "embedding", "models": ""}  # fmt: skip
        return [*(Shelf(Path(name), kind) for name, kind in known.items()), *(Shelf(path, "checkpoint") for path in (*self.more, TINY))]

    def target(self, kind: str) -> Path:
        return self.home / "tools"

    def made(self, path: Path, kind: str, replaced: bool) -> None:
        """The next look into the folder finds it."""


@dataclass(eq=False)
class Job:
    """A tool at work, or what came of it. `state`: running, stopping, done, stopped or failed."""

    tool: Tool
    args: Namespace
    values: Mapping[str, Any]
    kind: str  # of the file that comes out
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    state: str = "running"
    done: int = 0
    total: int = 0
    error: str = ""
    detail: str = ""
    made: Made = Made()
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    def told(self, done: int, total: int) -> None:
        """How far the tool is. Raises Stopped where it shall go no further."""
        if self.state == "stopping":
            raise Stopped
        self.done, self.total = done, total

    @property
    def left(self) -> float | None:
        """Seconds until it is done, if what is left takes as long as what was."""
        going = self.state == "running" and self.done
        return (time.monotonic() - self.began) / self.done * (self.total - self.done) if going else None


class Toolbox:
    """The tools of one program; `home` is its output folder, `outputs` says where its runs are."""

    def __init__(self, folders: Folders, home: Path, outputs: Callable[[], list[Path]]):
        self.folders, self.home, self.outputs = folders, home, outputs
        self.job: Job | None = None
        self._known: list[Known] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    # ---- what there is -----------------------------------------------------------------------------------------------

    def forms(self) -> list[dict[str, Any]]:
        """What each tool asks, for whoever draws a form."""
        names = ("name", "label", "text", "step")
        return [{**{name: getattr(tool, name) for name in names}, "fields": [_field(a) for a in tool.arguments]} for tool in TOOLS.values()]

    def files(self) -> list[dict[str, Any]]:
        """The files to choose from: the host's, those of runs, and what tools have made."""
        runs = [folder for output in self.outputs() if output.is_dir() for folder in sorted(output.iterdir()) if is_run(folder)]
        own = [*(Shelf(folder, deep=False) for folder in runs), Shelf(self.home / "tools"), Shelf(self.recipes, "recipe")]
        self._known = scan([*self.folders.shelves(), *own])
        return [asdict(known) for known in self._known]

    @property
    def recipes(self) -> Path:
        return self.home / "recipes"

    def find(self, text: str) -> Path:
        """A file by its name in the list, or by its path."""
        if not any(known.name == text for known in self._known) and not expanded(text).exists():
            self.files()  # it may be newer than the list
        return next((Path(known.path) for known in self._known if known.name == text), expanded(text))

    # ---- recipes -----------------------------------------------------------------------------------------------------

    def read_recipe(self, file: str) -> list[dict[str, Any]]:
        """The rows of a recipe. Raises ValueError."""
        if not file.strip():
            raise ValueError("Choose a recipe first.")
        return [{"file": self._called(lora.path), "unet": lora.unet, "text_encoder": lora.text} for lora in read_recipe(self.find(file.strip()))]

    def _called(self, path: Path) -> str:
        """What the list calls a file."""
        return next((known.name for known in self._known if known.path == str(path.absolute())), str(path))

    def save_recipe(self, name: str, rows: list[Mapping[str, Any]]) -> Path:
        """Writes rows as the recipe `NAME.toml`. Raises ValueError for a name that cannot be a file's, FileExistsError for one that is taken."""
        TrainConfig(name=name).check()
        found = weighted_rows(rows, self.find)
        if not found:
            raise ValueError(NO_LORA)
        return write_recipe(self.recipes / f"{name}.toml", found)

    # ---- a job -------------------------------------------------------------------------------------------------------

    def check(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """What would come of these values, before anything is done: what is wrong at which field and what is missing, the name and place of the output."""
        asked = self._ask(name, values)
        out = getattr(asked.args, "out", None)
        missing = {key: text for key, text in asked.problems.items() if key in asked.missing}
        problems = {key: text for key, text in asked.problems.items() if key not in asked.missing}
        return {"problems": problems, "missing": missing, "out": out.name if out and asked.proposed else "", "folder": str(asked.folder), "exists": asked.exists}

    def start(self, name: str, values: Mapping[str, Any]) -> str:
        """Starts a tool and returns the job's id. Raises ValueError with a line `field: sentence` for each thing that is wrong, or where a job goes."""
        asked = self._ask(name, values)
        if asked.problems:
            raise ValueError("\n".join(f"{key}: {text}" for key, text in asked.problems.items()))
        with self._lock:
            if self.job and self.job.state in GOING:
                raise ValueError(f"A tool is at work already ({self.job.tool.name}): wait for it, or stop it.")
            self.job = Job(asked.tool, asked.args, dict(values), asked.kind)
            self._thread = threading.Thread(target=self._work, args=(self.job,), name="tuner-tool", daemon=True)
            self._thread.start()
            return self.job.id

    def stop(self) -> None:
        """The job gives up what it is writing. Raises ValueError where none goes."""
        with self._lock:
            if not self.job or self.job.state not in GOING:
                raise ValueError("No tool is at work.")
            self.job.state = "stopping"

    def close(self, timeout: float = 30.0) -> None:
        """The program ends, and the job with it."""
        with suppress(ValueError):  # none goes, or it has ended just now
            self.stop()
        if self._thread:
            self._thread.join(timeout)

    def status(self, known: str = "") -> dict[str, Any] | None:
        """The job that goes or has last gone; None before the first. `known`: the job whose report has been told already."""
        job = self.job
        if job is None:
            return None
        files = [{"path": str(path), "name": path.name, "bytes": path.stat().st_size if path.is_file() else 0} for path in job.made.files]
        return {
            "id": job.id, "tool": job.tool.name, "state": job.state, "step": job.tool.step, "done": job.done, "total": job.total, "left": job.left,
            "seconds": (job.ended or time.monotonic()) - job.began, "error": job.error, "detail": job.detail, "values": json_values(job.values), "kind": job.kind,
            "files": files, "said": [] if job.made.report else list(job.made.said), "report": json_values(job.made.report) if known != job.id else None,
        }  # fmt: skip

    def file(self, index: int) -> Path:
        """A file that the last job has made. Raises ValueError."""
        files = self.job.made.files if self.job else ()
        if not 0 <= index < len(files) or not files[index].is_file():
            raise ValueError("That file is gone.")
        return files[index]

    # ---- how it is done ----------------------------------------------------------------------------------------------

    def _ask(self, name: str, values: Mapping[str, Any]) -> Asked:
        if name not in TOOLS:
            raise ValueError(f"There is no tool {name!r}{meant(name, TOOLS) or '.'}")
        tool = TOOLS[name]
        asked = Asked(tool, *tool.read(values, self.find), folder=self.folders.target(tool.makes))
        if asked.problems:
            return asked
        key = "out" if any(a.key == "out" for a in tool.arguments) else "picture"
        try:
            asked.kind = tool.makes or _kind(self._known, tool.inputs(asked.args)[0])
            asked.folder = self.folders.target(asked.kind) if key == "out" else self.home / "tools"
            _put(asked, key)
            tool.check(asked.args)
        except Exists as error:
            asked.exists = True
            asked.problems[key] = f"{error.path} exists already; choose another name, or tick that it is replaced."
        except (ValueError, OSError) as error:
            asked.problems[key] = sentence(error)
        return asked

    def _work(self, job: Job) -> None:
        targets = [path for path, _ in job.tool.outputs(job.args)]
        there = {path for path in targets if path.exists()}
        try:
            for path in targets[:1]:
                (job.args.out if hasattr(job.args, "out") else path).parent.mkdir(parents=True, exist_ok=True)
            job.made = job.tool.run(job.args, job.told)
            self._list(job, there)
            state = "done"
        except Stopped:
            state = "stopped"
        except Exception as error:  # whatever a file makes of a tool, the page goes on
            job.error = sentence(error)
            job.detail = "" if isinstance(error, (ValueError, OSError)) else "".join(traceback.format_exception(error))
            state = "failed"
        with self._lock:
            job.state, job.ended = state, time.monotonic()

    def _list(self, job: Job, there: set[Path]) -> None:
        """The host finds the new files; where it does not, they are there all the same."""
        for path in job.made.files if hasattr(job.args, "out") else ():  # a picture of `inspect` is nobody's model
            try:
                self.folders.made(path, job.kind, path in there)
            except Exception as error:  # the host's own code
                LOG.warning("%s is written, but the host did not take it into its list: %s", path, error)
                missed = "The file is there, but the WebUI has not taken it into its list: press the refresh button beside that list."
                job.made = replace(job.made, said=(*job.made.said, missed))


@dataclass
class Asked:
    """What a tool is asked to do, as far as it can be understood."""

    tool: Tool
    args: Namespace
    problems: dict[str, str]
    missing: list[str]
    folder: Path
    kind: str = ""
    proposed: bool = False  # the output's name is ours
    exists: bool = False


def _field(argument: Argument) -> dict[str, Any]:
    """An argument as JSON."""
    names = ("key", "kind", "label", "help", "required", "choices", "empty", "of", "only", "more")
    return {**{name: getattr(argument, name) for name in names}, "low": argument.limits.low, "high": argument.limits.high, "value": argument.shown}


def _kind(known: Iterable[Known], path: Path) -> str:
    """The kind of an input: as the list has it, or by its header; a folder is a LoRA of peft."""
    if path.is_dir():
        return "lora"
    return next((each.kind for each in known if each.path == str(path.absolute())), "") or kind_in(path, path.stat().st_mtime_ns)


def _put(asked: Asked, key: str) -> None:
    """Gives the output its name, if it has none, and its whole path. Raises ValueError for a place that is none."""
    args = asked.args
    given = getattr(args, key)
    if given is not None:
        setattr(args, key, _placed(given, asked.folder))
    elif key == "out":
        args.out, asked.proposed = asked.folder / "x", True
        ending = "".join({suffix for _, suffix in asked.tool.outputs(args)})
        args.out = _free(asked.folder, asked.tool.proposal(args)[:LONGEST], ending)


def _placed(path: Path, folder: Path) -> Path:
    if path.is_absolute():
        if not path.parent.is_dir():
            raise ValueError(f"{path.parent} is no folder; choose one that exists.")
        return path
    if ".." in path.parts or path.drive:
        raise ValueError(f"{path} leads out of {folder}; type the whole path instead.")
    return folder / path


def _free(folder: Path, stem: str, ending: str) -> Path:
    """A name that nothing has: `stem`, or with a number."""
    names = (f"{stem}{f'-{n}' if n > 1 else ''}{ending}" for n in count(1))
    return next(folder / name for name in names if not (folder / name).exists() and not (folder / name).is_symlink())
