"""A run as it goes: what its events come to, ready to be told to any number of pages at any moment.

One thread takes events in; others ask for `snapshot`. Losses stay on their device until half a second has passed, so that watching never makes a run wait.
"""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .events import Drifted, Event, Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from .progress import WINDOW, seconds_per_step

READ_EVERY = 0.5  # seconds
WARNINGS = 100  # kept


class Live:
    """What is known of one run: progress, losses, samples, saves, warnings, and what is being waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.start, self.step, self.steps = 0, 0, 0
        self.folder: Path | None = None
        self.training: list[Any] = []
        self.text = "Starting"  # what is being waited for; empty between two steps
        self.done, self.total = 0, 0  # of that
        self.warnings: list[str] = []
        self.points: list[list[float | None]] = []  # step, loss, learning rate
        self.part = _part()  # another one wherever points that may have been told are not those any more
        self.validations: list[list[float | None]] = []  # step, loss
        self.drifts: list[list[float | None]] = []  # step, language drift
        self.samples: list[dict[str, Any]] = []
        self.saves: list[dict[str, Any]] = []
        self._unread: list[Stepped] = []
        self._times: deque[float] = deque(maxlen=WINDOW + 1)
        self._read = 0.0

    def known(self, past: Mapping[str, Any]) -> None:
        """What an earlier part of the run has left (`runs.details`), before it goes on or where it only is shown."""
        with self._lock:
            self.part, self.points, self.validations, self.samples = _part(), list(past["points"]), list(past["validations"]), list(past["samples"])
            self.start, self.step, self.steps, self.text = 0, past["step"], past["steps"], ""
            self.training, self.drifts = list(past["training"]), list(past["drifts"])

    def take(self, event: Event) -> None:
        """Adds an event; called by the run's own thread."""
        with self._lock:
            self._take(event)
            self._read_losses(at_once=not isinstance(event, Stepped))

    def _take(self, event: Event) -> None:
        match event:
            case Preparing(done=done, total=total, text=text):
                self.text, self.done, self.total = text, done, total
                return
            case Started():
                self._begin(event)
            case Stepped(step=step):
                self.step = step
                self._times.append(time.monotonic())
                self._unread.append(event)
            case Sampled(step=step, paths=paths):
                self.samples = [s for s in self.samples if s["step"] != step] + [{"step": step, "pictures": [f"samples/{path.name}" for path in paths]}]
            case Saved(step=step, paths=paths, report=report):
                self.saves.append({"step": step, "files": [path.name for path in paths], "report": report})
            case Validated(step=step, loss=loss):
                self.validations.append([step, finite(float(loss))])
            case Drifted(step=step, drift=drift):
                self.drifts.append([step, finite(drift)])
            case Warned(text=text):
                self.warnings = [*self.warnings, text][-WARNINGS:]
                return
            case Finished(step=step):
                self.step = step
        self.text = ""

    def _begin(self, event: Started) -> None:
        self.start = self.step = event.start
        self.steps, self.folder, self.training = event.steps, event.folder, list(event.pictures)
        self._times.append(time.monotonic())
        self.part, self.points = _part(), [p for p in self.points if p[0] <= event.start]
        self.validations = [v for v in self.validations if v[0] <= event.start]
        self.samples = [s for s in self.samples if s["step"] <= event.start]
        self.drifts = [d for d in self.drifts if d[0] <= event.start]

    def _read_losses(self, at_once: bool = False) -> None:
        """Here a GPU is waited for, so seldom."""
        now = time.monotonic()
        if self._unread and (at_once or now - self._read > READ_EVERY):
            self.points += [[event.step, finite(float(event.loss)), event.lr] for event in self._unread]
            self._unread, self._read = [], now

    def snapshot(self, part: str = "", points_from: int = 0) -> dict[str, Any]:
        """All of it as JSON takes it; of the points of that part of the run only those from number `points_from` on."""
        with self._lock:
            points_from = points_from if part == self.part else 0
            self._read_losses()
            speed = seconds_per_step(self._times)
            return {
                "start": self.start, "step": self.step, "steps": self.steps, "text": self.text, "done": self.done, "total": self.total,
                "seconds_per_step": speed, "left": None if speed is None else speed * max(0, self.steps - self.step), "warnings": list(self.warnings),
                "part": self.part, "points": self.points[points_from:], "points_from": min(points_from, len(self.points)), "validations": list(self.validations), "drifts": list(self.drifts),
                "samples": list(self.samples), "saves": list(self.saves), "training": list(range(len(self.training))),
            }  # fmt: skip


def _part() -> str:
    return uuid.uuid4().hex[:8]


def finite(number: float | None) -> float | None:
    """The number, or None where it is none: JSON has no NaN."""
    return number if number is not None and math.isfinite(number) else None


def process_memory() -> dict[str, float | None]:
    """Bytes in use: of this process, and on a GPU what this run has held there at most (None without a GPU)."""
    import torch

    gpu = max(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) if torch.cuda.is_available() and torch.cuda.is_initialized() else None  # the run's card is the one in use
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            resident = next(int(line.split()[1]) * 1024.0 for line in file if line.startswith("VmRSS"))
    except (OSError, StopIteration):  # not Linux
        resident = None
    return {"process": resident, "gpu": gpu}
