"""The queue of runs and the one thread that trains them: add, order, start, pause, resume, stop, save now, sample now, and what is told of it.

Everybody but that thread sets flags and reads. The queue survives the program: a run that was going then is found paused.
"""

from __future__ import annotations

import gc
import logging
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, recorders, runs
from .config import flat_values
from .disk import expanded
from .events import Event, Finished, Preparing, Started
from .host import Host
from .live import Live, process_memory
from .methods import METHODS, settings
from .progress import sentence
from .queue_file import ENDED, GOING, Entry, QueueFile
from .settings import TrainConfig
from .train import Orders, train
from .work import Stopped

LOG = logging.getLogger("lib_tuner")
KEPT = 20  # ended runs that stay in the queue's list


@dataclass
class _Wanted:
    """What people have asked of the run that is going."""

    end: str = ""  # pause or stop
    held: bool = False  # the queue is on hold whatever becomes of a pause
    orders: Orders = field(default_factory=Orders)


def row(entry: Entry) -> dict[str, Any]:
    """What the page's list shows of an entry."""
    shown = {key: entry.values.get(key) for key in ("name", "method", "steps")}
    return {"id": entry.id, **shown, "state": entry.state, "step": entry.step, "error": entry.error, "run": runs.run_id(Path(entry.folder)) if entry.folder else ""}


class Jobs:
    """The queue of one program; `home` is the output folder, `hosts` makes the host of a run, `changed` hears of a run's folder whose files a person has renamed or deleted. Raises ValueError where another program has that folder."""

    def __init__(self, home: Path, hosts: Callable[[TrainConfig], Host], changed: Callable[[Path], Any] = lambda folder: None):
        self.home, self.hosts, self.files_changed = expanded(home).resolve(), hosts, changed
        self._file = QueueFile(self.home)
        self.entries: list[Entry] = []
        self.held = False  # nothing new is started
        self._lent = False  # nor while somebody has the model
        self.live: Live | None = None
        self.current: Entry | None = None  # running, or the last that ran
        self.trouble = ""  # why the queue cannot be written down at the moment
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
                self.held = self._wanted.held = False  # on hold for want of a decision; this is one
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
            if wanted == "pause" != self._wanted.end:
                self._wanted.held, self.held = self.held, True
            elif wanted == "stop" and self._wanted.end == "pause":
                self.held = self._wanted.held  # a stop takes an earlier pause back
            entry.state, self._wanted.end = state, wanted
            self._save()

    def resume(self, id: str) -> None:
        """A paused, stopped or failed run goes on next, from its last saved state; without one it begins again."""
        with self._changed:
            entry = self._entry(id)
            if entry.state not in ("paused", *ENDED) or entry.state == "done":
                raise ValueError(f"{entry.name} is {entry.state}, so there is nothing to resume.")
            if entry.folder and not Path(entry.folder).is_dir():
                raise ValueError(f"The folder of {entry.name} is gone ({entry.folder}); take it out of the queue.")
            has_state = entry.folder and checkpoint.newest_step(entry.folder)
            entry.values["resume"] = entry.folder if has_state else ""
            entry.state, entry.error, entry.detail = "waiting", "", ""
            self.entries.remove(entry)
            self.entries.insert(self._first_waiting(), entry)
            self.held = self._wanted.held = False
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
            self.held = self._wanted.held = False
            self._save()

    def hold_queue(self) -> None:
        """Lets the run that is going end, and starts no other."""
        with self._changed:
            self.held = self._wanted.held = True
            self._save()

    def check_free(self) -> None:
        """Raises ValueError where a run is going or something else has the model."""
        with self._changed:
            if self.current and self.current.state in GOING:
                raise ValueError(f"{self.current.name} is being trained; wait until it has ended, or pause it.")
            if self._lent:
                raise ValueError("Something else is using the model; wait until it has ended.")

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The model, for something else than a run: what waits begins afterwards. Raises ValueError where a run is going or something else has it."""
        with self._changed:
            self.check_free()
            self._lent = True
        try:
            yield
        finally:
            _give_back()
            with self._changed:
                self._lent = False
                self._changed.notify_all()

    def order(self, save: bool = False, sample: bool = False, prompts: str | None = None) -> None:
        """A save or samples after the step that is being computed, other sample prompts from now on. Raises ValueError where nothing runs."""
        with self._changed:
            entry, before = self._going(), self._wanted.orders
            text = entry.values.get("sample.prompts", "") if prompts is None else prompts
            if sample and not text.strip():
                raise ValueError("There is no sample prompt: write one first.")
            if not text.strip() and entry.values.get("sample.every"):
                raise ValueError(f"Samples are drawn every {entry.values['sample.every']} steps, so there has to be at least one prompt.")
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
                raise ValueError(f"{entry.name} does not wait, so it has no place to change.")
            at = waiting.index(entry)
            other = waiting[min(max(at + by, 0), len(waiting) - 1)]
            i, j = self.entries.index(entry), self.entries.index(other)
            self.entries[i], self.entries[j] = other, entry
            self._save()

    def remove(self, id: str) -> None:
        """Takes a run out of the queue; its files stay. Raises ValueError for the one that is going."""
        with self._changed:
            entry = self._entry(id)
            if entry.state in GOING:
                raise ValueError(f"{entry.name} is running: stop it first.")
            self.entries.remove(entry)
            if self.current is entry:
                self.current = self.live = None
            self._save()

    def delete_run(self, folder: Path) -> None:
        """Deletes a run's folder. Raises ValueError where a run of the queue still needs it."""
        with self._changed:
            for entry in [e for e in self.entries if e.folder and Path(e.folder).resolve() == folder.resolve()]:
                if entry.state not in ENDED:
                    raise ValueError(f"{entry.name} is {entry.state}: stop it, or take it out of the queue, before its files are deleted.")
                self.remove(entry.id)
            runs.delete_run(folder)
            self.files_changed(folder)

    def close(self, timeout: float = 60.0) -> None:
        """The program ends: the run that is going is paused, so that it is found again."""
        with self._changed:
            self._closing = True
            if self.current and self.current.state == "running":
                self._wanted.end = "pause"
            self._changed.notify_all()
        self._thread.join(timeout)
        self._file.close()

    # ---- what people are told ----------------------------------------------------------------------------------------

    def status(self, part: str = "", points: int = 0) -> dict[str, Any]:
        """The queue, and the run that is going or has last gone; of its points those from number `points` on, where `part` is the part of the run that goes."""
        with self._changed:
            entry, live = self.current, self.live
            told = {"held": self.held, "trouble": self.trouble, "queue": [row(e) for e in self.entries], "now": None}
            if entry and live:
                told["now"] = {**row(entry), **live.snapshot(part, points), "detail": entry.detail, "folder": entry.folder,
                               "prompts": entry.values.get("sample.prompts", ""), "device": self._device}  # fmt: skip
        if now := told["now"]:  # the disk is read while nobody waits
            here = bool(now["folder"]) and now["state"] in ("paused", *ENDED) and Path(now["folder"]).is_dir()
            now |= {"memory": process_memory(), "files": runs.saved_files(Path(now["folder"])) if here else []}
        return told

    def outputs(self) -> list[Path]:
        """The output folders of all runs known here."""
        return [self.home, *(Path(p) for p in self._outputs)]

    def history(self) -> list[dict[str, Any]]:
        """All runs on the disk, the newest first."""
        return [self._known(found) for found in runs.listing(self.outputs())]

    def details(self, run: str) -> dict[str, Any]:
        """One run in full. Raises ValueError where it is gone."""
        return self._known(runs.details(self.folder_of(run)))

    def _known(self, found: dict[str, Any]) -> dict[str, Any]:
        """A run of the disk with its id; one whose program was killed still calls itself running."""
        folder, current = Path(found["folder"]), self.current
        going = current is not None and current.state in GOING and current.folder == str(folder.resolve())
        state = "interrupted" if found["state"] == "running" and not going else found["state"]
        return {**found, "id": runs.run_id(folder), "state": state, "resumable": found["resumable"] and not going}

    def folder_of(self, run: str) -> Path:
        """The folder of a run by its id. Raises ValueError."""
        for output in self.outputs():
            for folder in output.iterdir() if output.is_dir() else ():
                if runs.is_run(folder) and runs.run_id(folder) == run:
                    return folder
        raise ValueError("That run's folder is gone.")

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            try:
                self._run(entry)
            except Exception as error:  # whatever happens to a run, the next one and the page go on
                self._failed(entry, error)
            _give_back()

    def _next(self) -> Entry | None:
        """Waits for a run to start; None when the program ends."""
        with self._changed:
            while not self._closing:
                waiting = next((e for e in self.entries if e.state == "waiting"), None)
                if waiting and not self.held and not self._lent:
                    self.current, self.live, self._wanted, self._device = waiting, Live(), _Wanted(), ""
                    waiting.state = "running"
                    self._save()
                    return waiting
                self._changed.wait()
            return None

    def _run(self, entry: Entry) -> None:
        cfg, live, last = settings(entry.values), self.live, None
        host = self.hosts(cfg)
        host.waits = lambda: self._waits(live)
        self._device = host.forecast().note
        if torch.cuda.is_initialized():
            for card in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(card)
        if cfg.resume and runs.is_run(expanded(cfg.resume)):  # else the run says what it lacks
            live.known(runs.details(expanded(cfg.resume)))
            live.text = "Starting"
        with suppress(Stopped), closing(self._events(cfg, host)) as events:
            for event in events:
                live.take(event)
                host.told(event)
                if isinstance(event, Started):
                    self._started(entry, event)
                last = event
        self._ended(entry, last)

    def _waits(self, live: Live) -> None:
        """The host has other work. Raises Stopped where the run is not to wait for it any longer."""
        live.take(Preparing(0, 0, "Waiting for the WebUI"))
        if self._wanted.end:
            raise Stopped

    def _events(self, cfg: TrainConfig, host: Host) -> Iterator[Event]:
        method = METHODS[cfg.method](cfg)
        events = recorders.csv(train(cfg, method, host, lambda: bool(self._wanted.end), orders=self._take_orders), every=cfg.csv_every)
        events = recorders.tensorboard(events) if cfg.tensorboard else events
        return runs.record(events, cfg, self._device)

    def _take_orders(self) -> Orders:
        with self._changed:
            orders, self._wanted.orders = self._wanted.orders, Orders()
            return orders

    def _started(self, entry: Entry, event: Started) -> None:
        with self._changed:
            folder = event.folder.resolve()
            entry.folder = str(folder)
            if str(folder.parent) not in self._outputs and folder.parent != self.home:
                self._outputs.append(str(folder.parent))
            self._save()

    def _ended(self, entry: Entry, last: Event | None) -> None:
        with self._changed:
            reason = last.reason if isinstance(last, Finished) else "stopped"
            entry.step = last.step if isinstance(last, Finished) else entry.step  # it has not begun: what it was resumed from
            entry.state = "paused" if reason == "stopped" and self._wanted.end == "pause" else reason
            if reason == "nan":
                entry.error = next(iter(reversed(self.live.warnings)), "The loss was no number.")
            self._save()

    def _failed(self, entry: Entry, error: Exception) -> None:
        detail = "".join(traceback.format_exception(error))
        LOG.error("The run %s failed.\n%s", entry.name, detail)  # as text: whoever keeps the error keeps its frames, and with them the model
        with self._changed:
            entry.state, entry.error, entry.detail = "failed", sentence(error), detail
            entry.step = self.live.step if self.live else 0
            self._save()

    # ---- the queue ---------------------------------------------------------------------------------------------------

    def _entry(self, id: str) -> Entry:
        found = next((e for e in self.entries if e.id == id), None)
        if found is None:
            raise ValueError("That run is no longer in the queue.")
        return found

    def _going(self) -> Entry:
        if not self.current or self.current.state not in GOING:
            raise ValueError("No run is going.")
        return self.current

    def _first_waiting(self) -> int:
        return next((i for i, e in enumerate(self.entries) if e.state == "waiting"), len(self.entries))

    def _save(self) -> None:
        """Writes the queue down, and wakes the thread. Called with the lock held. A full disk must not end what goes on in memory: it is told, and tried again."""
        ended = [e for e in self.entries if e.state in ENDED and e is not self.current]
        for old in ended[: max(0, len(ended) - KEPT)]:
            self.entries.remove(old)
        try:
            self._file.save(self.entries, self.held, self._outputs)
            self.trouble = ""
        except OSError as error:
            LOG.error("The queue could not be written.", exc_info=error)
            self.trouble = f"The queue cannot be written down ({sentence(error)}): make room, or it is lost when the program ends."
        self._changed.notify_all()

    def _load(self) -> None:
        """The queue as an earlier program left it: what was going is paused, and what waits waits for somebody to say so."""
        self.entries, held, self._outputs = self._file.load()
        for entry in self.entries:
            if entry.state in GOING:
                entry.state, entry.error = "paused", "The program ended while this run was going; resume goes on from its last saved state."
                entry.step = checkpoint.newest_step(entry.folder) if entry.folder else 0
        self.held = held or any(e.state in ("waiting", "paused") for e in self.entries)
        paused = next((e for e in self.entries if e.state == "paused"), None)
        if paused:
            self.current, self.live = paused, Live()
            if paused.folder and runs.is_run(Path(paused.folder)):
                self.live.known(runs.details(Path(paused.folder)))


def _give_back() -> None:
    """Frees the model of the run that has ended: it hangs in circles that Python collects when it likes, and torch keeps video memory for itself."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
