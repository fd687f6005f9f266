"""The queue of runs and the one thread that trains them: add, order, start, pause, resume, stop, save now, sample now, and what is told of it.

Everybody but that thread sets flags and reads. The queue lies in `queue.json` and survives the program: a run that was going then is found paused.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from . import checkpoint, recorders, runs
from .config import build, flat_values, meant, method_name
from .events import Event, Finished, Started
from .host import Host
from .live import Live, process_memory
from .methods import METHODS
from .sd.files import atomic
from .settings import TrainConfig
from .train import Orders, train

LOG = logging.getLogger("lib_tuner")
ENDED = ("done", "stopped", "nan", "failed")
KEPT = 20  # ended runs that stay in the queue's list


@dataclass
class Entry:
    """A run in the queue. `state`: waiting, running, pausing, stopping, paused, or one of ENDED."""

    id: str
    values: dict[str, Any]
    state: str = "waiting"
    folder: str = ""
    step: int = 0
    error: str = ""  # one sentence
    detail: str = ""  # the traceback, for who wants to report it

    def row(self) -> dict[str, Any]:
        """What the page's list shows of it."""
        shown = {key: self.values.get(key) for key in ("name", "method", "steps")}
        return {"id": self.id, **shown, "state": self.state, "step": self.step, "error": self.error, "run": run_id(Path(self.folder)) if self.folder else ""}


@dataclass
class _Wanted:
    """What people have asked of the run that is going."""

    end: str = ""  # pause or stop
    orders: Orders = field(default_factory=Orders)


def run_id(folder: Path) -> str:
    """A run's name in addresses: its folder's, which may occur in two output folders, with a hash of where it lies."""
    return uuid.uuid5(uuid.NAMESPACE_URL, str(folder.resolve())).hex[:12]


def settings(values: Mapping[str, Any]) -> TrainConfig:
    """The settings out of flat values. Raises ValueError with a line per problem."""
    name = method_name(TrainConfig, values)
    if name not in METHODS:
        raise ValueError(f"method: {name!r} is not one of {', '.join(METHODS)}{meant(name, METHODS)}")
    return build(TrainConfig, values, METHODS[name].Config)


class Jobs:
    """The queue of one program; `home` is the output folder, `hosts` makes the host of a run."""

    def __init__(self, home: Path, hosts: Callable[[TrainConfig], Host]):
        self.home, self.hosts = home, hosts
        self.entries: list[Entry] = []
        self.held = False  # nothing new is started
        self.live: Live | None = None
        self.current: Entry | None = None  # running, or the last that ran
        self._cfg: TrainConfig | None = None
        self._device = ""
        self._wanted, self._closing = _Wanted(), False
        self._changed = threading.Condition(threading.RLock())
        self._outputs: list[str] = []
        self._load()
        self._thread = threading.Thread(target=self._work, name="tuner-jobs", daemon=True)
        self._thread.start()

    # ---- what people ask for -----------------------------------------------------------------------------------------

    def add(self, values: Mapping[str, Any]) -> Entry:
        """Puts a run at the end of the queue, which starts it when its turn comes. Raises ValueError for settings that are none."""
        cfg = settings(values)
        with self._changed:
            if not any(e.state == "waiting" for e in self.entries):
                self.held = False  # on hold for want of a decision; this is one
            entry = Entry(uuid.uuid4().hex[:8], flat_values(cfg))
            self.entries.append(entry)
            self._save()
            return entry

    def pause(self) -> None:
        """The run saves and gives the model back; nothing else starts until somebody says so."""
        self._end("pause", "pausing")

    def stop(self) -> None:
        """The run saves what it has learned and ends; the next one starts."""
        self._end("stop", "stopping")

    def _end(self, wanted: str, state: str) -> None:
        with self._changed:
            entry = self._going()
            self.held = self.held or wanted == "pause"
            entry.state, self._wanted.end = state, wanted
            self._save()

    def resume(self, id: str) -> None:
        """A paused, stopped or failed run goes on next, from its last saved state; without one it begins again."""
        with self._changed:
            entry = self._entry(id)
            if entry.state not in ("paused", *ENDED) or entry.state == "done":
                raise ValueError(f"{entry.values['name']} is {entry.state}, so there is nothing to resume.")
            has_state = entry.folder and checkpoint.newest_step(entry.folder)
            entry.values["resume"] = entry.folder if has_state else ""
            entry.state, entry.error, entry.detail = "waiting", "", ""
            self.entries.remove(entry)
            self.entries.insert(self._first_waiting(), entry)
            self.held = False
            self._save()

    def resume_run(self, folder: Path) -> Entry:
        """A run of the history goes on: as the entry that it is in the queue, or as a new one."""
        with self._changed:
            known = next((e for e in self.entries if e.folder and Path(e.folder).resolve() == folder.resolve()), None)
            if known is None:
                known = Entry(uuid.uuid4().hex[:8], flat_values(runs.settings_of(folder)), "stopped", str(folder), checkpoint.newest_step(folder))
                self.entries.append(known)
            self.resume(known.id)
            return known

    def start_queue(self) -> None:
        """Takes the queue off its hold."""
        with self._changed:
            self.held = False
            self._save()

    def hold_queue(self) -> None:
        """Lets the run that is going end, and starts no other."""
        with self._changed:
            self.held = True
            self._save()

    def order(self, save: bool = False, sample: bool = False, prompts: str | None = None) -> None:
        """A save or samples after the step that is being computed, other sample prompts from now on. Raises ValueError where nothing runs."""
        with self._changed:
            entry, before = self._going(), self._wanted.orders
            text = entry.values.get("sample.prompts", "") if prompts is None else prompts
            if sample and not text.strip():
                raise ValueError("There is no sample prompt: write one first.")
            self._wanted.orders = Orders(before.save or save, before.sample or sample, before.prompts if prompts is None else prompts)
            if prompts is not None:
                entry.values["sample.prompts"] = prompts
                self._save()

    def move(self, id: str, by: int) -> None:
        """Moves a waiting run up (-1) or down (1) among those that wait."""
        with self._changed:
            waiting = [e for e in self.entries if e.state == "waiting"]
            entry = self._entry(id)
            if entry not in waiting:
                raise ValueError(f"{entry.values['name']} does not wait, so it has no place to change.")
            at = waiting.index(entry)
            other = waiting[min(max(at + by, 0), len(waiting) - 1)]
            i, j = self.entries.index(entry), self.entries.index(other)
            self.entries[i], self.entries[j] = other, entry
            self._save()

    def remove(self, id: str) -> None:
        """Takes a run out of the queue; its files stay. Raises ValueError for the one that is going."""
        with self._changed:
            entry = self._entry(id)
            if entry.state in ("running", "pausing", "stopping"):
                raise ValueError(f"{entry.values['name']} is running: stop it first.")
            self.entries.remove(entry)
            if self.current is entry:
                self.current = self.live = None
            self._save()

    def delete_run(self, folder: Path) -> None:
        """Deletes a run's folder. Raises ValueError where a run of the queue still needs it."""
        with self._changed:
            for entry in [e for e in self.entries if e.folder and Path(e.folder).resolve() == folder.resolve()]:
                if entry.state not in ENDED:
                    raise ValueError(f"{entry.values['name']} is {entry.state}: stop it, or take it out of the queue, before its files are deleted.")
                self.remove(entry.id)
            runs.delete_run(folder)

    def close(self, timeout: float = 60.0) -> None:
        """The program ends: the run that is going is paused, so that it is found again."""
        with self._changed:
            self._closing = True
            if self.current and self.current.state == "running":
                self._wanted.end = "pause"
            self._changed.notify_all()
        self._thread.join(timeout)

    # ---- what people are told ----------------------------------------------------------------------------------------

    def status(self, run: str = "", points: int = 0) -> dict[str, Any]:
        """The queue, and the run that is going or has last gone; of its points those from number `points` on, if `run` names it."""
        with self._changed:
            entry, live = self.current, self.live
            told = {"held": self.held, "queue": [e.row() for e in self.entries], "now": None}
            if entry and live:
                told["now"] = {**entry.row(), **live.snapshot(points if run == entry.id else 0), "id": entry.id, "state": entry.state, "detail": entry.detail,
                               "prompts": entry.values.get("sample.prompts", ""), "device": self._device, "folder": entry.folder, "method": entry.values["method"]}  # fmt: skip
        if now := told["now"]:  # the disk is read while nobody waits
            here = bool(now["folder"]) and now["state"] in ("paused", *ENDED) and Path(now["folder"]).is_dir()
            now |= {"memory": process_memory(), "files": runs.saved_files(Path(now["folder"])) if here else []}
        return told

    def outputs(self) -> list[Path]:
        """The output folders of all runs known here."""
        return [self.home, *(Path(p) for p in self._outputs)]

    def history(self) -> list[dict[str, Any]]:
        """All runs on the disk, the newest first."""
        return [{**row, "id": run_id(Path(row["folder"]))} for row in runs.listing(self.outputs())]

    def folder_of(self, run: str) -> Path:
        """The folder of a run by its id. Raises ValueError."""
        for output in self.outputs():
            for folder in output.iterdir() if output.is_dir() else ():
                if runs.is_run(folder) and run_id(folder) == run:
                    return folder
        raise ValueError("That run's folder is gone.")

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            try:
                self._run(entry)
            except Exception as error:  # whatever happens to a run, the next one and the page go on
                self._failed(entry, error)

    def _next(self) -> Entry | None:
        """Waits for a run to start; None when the program ends."""
        with self._changed:
            while not self._closing:
                waiting = next((e for e in self.entries if e.state == "waiting"), None)
                if waiting and not self.held:
                    self.current, self.live, self._wanted, self._device = waiting, Live(), _Wanted(), ""
                    waiting.state = "running"
                    self._save()
                    return waiting
                self._changed.wait()
            return None

    def _run(self, entry: Entry) -> None:
        cfg, live = settings(entry.values), self.live
        host = self.hosts(cfg)
        self._device = host.forecast().note
        if cfg.resume:
            past = runs.details(Path(cfg.resume))
            live.known(past["points"], past["validations"], past["samples"])
        last = None
        with closing(self._events(cfg, host)) as events:
            for event in events:
                live.take(event)
                if isinstance(event, Started):
                    self._started(entry, event, cfg)
                last = event
        self._ended(entry, last)

    def _events(self, cfg: TrainConfig, host: Host) -> Iterator[Event]:
        method = METHODS[cfg.method](cfg)
        events = recorders.csv(train(cfg, method, host, lambda: bool(self._wanted.end), orders=self._take_orders))
        events = recorders.tensorboard(events) if cfg.tensorboard else events
        return runs.record(events, cfg, self._device)

    def _take_orders(self) -> Orders:
        with self._changed:
            orders, self._wanted.orders = self._wanted.orders, Orders()
            return orders

    def _started(self, entry: Entry, event: Started, cfg: TrainConfig) -> None:
        with self._changed:
            entry.folder = str(event.folder)
            output = str(event.folder.parent)
            if output not in self._outputs and event.folder.parent.resolve() != self.home.resolve():
                self._outputs.append(output)
            self._save()

    def _ended(self, entry: Entry, last: Event | None) -> None:
        with self._changed:
            reason = last.reason if isinstance(last, Finished) else "stopped"
            entry.step = last.step if isinstance(last, Finished) else 0
            entry.state = "paused" if reason == "stopped" and self._wanted.end == "pause" else reason
            if reason == "nan":
                entry.error = next(iter(reversed(self.live.warnings)), "The loss was no number.")
            self._save()

    def _failed(self, entry: Entry, error: Exception) -> None:
        LOG.error("The run %s failed.", entry.values.get("name"), exc_info=error)
        with self._changed:
            entry.state, entry.error = "failed", sentence(error)
            entry.detail = "".join(traceback.format_exception(error))
            entry.step = self.live.step if self.live else 0
            self._save()

    # ---- the queue ---------------------------------------------------------------------------------------------------

    def _entry(self, id: str) -> Entry:
        found = next((e for e in self.entries if e.id == id), None)
        if found is None:
            raise ValueError("That run is no longer in the queue.")
        return found

    def _going(self) -> Entry:
        if not self.current or self.current.state not in ("running", "pausing", "stopping"):
            raise ValueError("No run is going.")
        return self.current

    def _first_waiting(self) -> int:
        return next((i for i, e in enumerate(self.entries) if e.state == "waiting"), len(self.entries))

    def _save(self) -> None:
        """Writes the queue, and wakes the thread. Called with the lock held."""
        ended = [e for e in self.entries if e.state in ENDED and e is not self.current]
        for old in ended[: max(0, len(ended) - KEPT)]:
            self.entries.remove(old)
        self.home.mkdir(parents=True, exist_ok=True)
        content = {"version": 1, "held": self.held, "outputs": self._outputs, "entries": [asdict(e) for e in self.entries]}
        with atomic(self._file) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        self._changed.notify_all()

    @property
    def _file(self) -> Path:
        return self.home / "queue.json"

    def _load(self) -> None:
        """The queue as an earlier program left it; one that cannot be read is set aside, not overwritten."""
        if not self._file.is_file():
            return
        try:
            content = json.loads(self._file.read_text(encoding="utf-8"))
            known = {f.name for f in fields(Entry)}
            self.entries = [Entry(**{k: v for k, v in e.items() if k in known}) for e in content["entries"]]
            self._outputs = list(content.get("outputs", []))
        except (ValueError, KeyError, TypeError, AttributeError):
            aside = self._file.with_suffix(".damaged.json")
            self._file.replace(aside)
            LOG.warning("The queue could not be read; it was set aside as %s.", aside)
            self.entries = []
            return
        for entry in self.entries:
            if entry.state in ("running", "pausing", "stopping"):
                entry.state, entry.error = "paused", "The program ended while this run was going; resume goes on from its last saved state."
                entry.step = checkpoint.newest_step(entry.folder) if entry.folder else 0
        self.held = bool(content.get("held")) or any(e.state in ("waiting", "paused") for e in self.entries)


def sentence(error: Exception) -> str:
    """What a person reads of an error: its own sentence, or what kind of fault it is."""
    if "out of memory" in str(error).lower():
        return "There was not enough memory: choose a smaller batch or resolution, turn gradient checkpointing on, or close other programs."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    return f"The run ended by a fault of the Tuner or of a package ({type(error).__name__}: {error}); the details help whoever mends it."
