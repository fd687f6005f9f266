"""Iterators that pass a run's events through and write them down: a CSV file, TensorBoard.

Losses stay on their device until rows are written, every ten steps and whenever the run did something slow anyway, so recording never makes it wait.
Closing a recorder writes what is left and closes the run it reads from.
"""

from __future__ import annotations

import csv as comma
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .disk import atomic
from .events import Drifted, Event, Finished, Sampled, Saved, Started, Stepped, Validated, Warned

COLUMNS = ("step", "loss", "lr", "validation", "seconds", "drift")
EVERY = 10


@contextmanager
def _closing(events: Iterable[Event], finish: Callable[[], None]) -> Iterator[None]:
    """Leaves by writing what is left, then by closing the run, even if the writing fails."""
    try:
        try:
            yield
        finally:
            finish()
    finally:
        close = getattr(events, "close", None)
        if close is not None:
            close()


# ---- CSV -------------------------------------------------------------------------------------------------------------


def csv(events: Iterable[Event], path: str | Path | None = None, every: int = 1) -> Iterator[Event]:
    """Passes events through and appends a row per step (or `every` so many; 0: none) to `path`, or else to `losses.csv` in the run's folder: step, loss, learning rate, validation loss, seconds of training until then, language drift.

    On a resume the rows behind the resumed step go, so that the file becomes that of a run never interrupted, but for the seconds.
    Rows are in the file when the event after `Saved` is asked for: a state that is saved after that has all its rows.
    Raises OSError where the file cannot be written.
    """
    table = _Table(Path(path) if path else None, every)
    with _closing(events, table.close):
        for event in events:
            table.take(event)
            yield event


@dataclass
class _Row:
    step: int
    loss: Any = None  # a tensor on its device until it is written
    lr: float | None = None
    validation: float | None = None
    seconds: float = 0.0
    drift: float | None = None

    def text(self) -> str:
        self.loss = None if self.loss is None else float(self.loss)  # here the device is waited for
        loss, lr, validation, drift = ("" if x is None else f"{x:.9g}" for x in (self.loss, self.lr, self.validation, self.drift))  # 9 digits give an fp32 back exactly
        return ",".join((str(self.step), loss, lr, validation, f"{self.seconds:.2f}", drift)) + "\n"


class _Table:
    """The rows of the file. The last one stays at hand after it was written, because its validation loss may follow."""

    def __init__(self, path: Path | None, every: int = 1):
        self.path, self.every, self.file, self.rows = path, every, None, []
        self.tail = 0  # where the first of `rows` lies in the file
        self.began = 0.0

    def take(self, event: Event) -> None:
        if isinstance(event, Started):
            self.path = self.path or event.folder / "losses.csv"
            self.open(event.start)
        elif isinstance(event, Stepped):
            if self.every and event.step % self.every == 0:
                row = self.row(event.step)
                row.loss, row.lr = event.loss, event.lr
        elif isinstance(event, Validated):
            self.row(event.step).validation = event.loss
        elif isinstance(event, Drifted):
            self.row(event.step).drift = event.drift
        if len(self.rows) > EVERY or isinstance(event, (Validated, Drifted, Sampled, Saved, Finished)):
            self.flush(sync=isinstance(event, (Saved, Finished)))

    def row(self, step: int) -> _Row:
        if not self.rows or self.rows[-1].step != step:
            self.rows.append(_Row(step, seconds=time.monotonic() - self.began))
        return self.rows[-1]

    def open(self, start: int) -> None:
        """Keeps the header and, of a resumed run, the rows up to its step."""
        with _said(self.path):
            kept = read_rows(self.path, start) if start else []
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(self.path) as temporary:
                temporary.write_bytes("".join([",".join(COLUMNS) + "\n", *(row.text() for row in kept)]).encode())
            self.file = self.path.open("rb+", buffering=0)  # unbuffered: a full disk is noticed where it can be said
        self.rows = kept[-1:]
        self.tail = self.path.stat().st_size - sum(len(row.text()) for row in self.rows)
        self.began = time.monotonic() - (kept[-1].seconds if kept else 0.0)

    def flush(self, sync: bool = False) -> None:
        """Writes the rows, the last written one again: it may have grown."""
        if self.file is None or not self.rows:
            return
        lines = [row.text().encode() for row in self.rows]
        with _said(self.path):
            self.file.seek(self.tail)
            data = b"".join(lines)
            while data:
                data = data[self.file.write(data) :]
            self.file.truncate()
            if sync:
                os.fsync(self.file.fileno())
        self.tail += sum(map(len, lines[:-1]))
        self.rows = self.rows[-1:]

    def close(self) -> None:
        if self.file is None:
            return
        try:
            self.flush(sync=True)
        finally:
            self.file.close()
            self.file = None


def read_rows(path: Path, last: float = math.inf) -> list[_Row]:
    """The rows of a run's file up to step `last` (step, loss, lr, validation, seconds); a line that a kill cut off is not one, and no file has none."""
    if not path.exists():
        return []
    whole = path.read_bytes().decode(errors="replace").rpartition("\n")[0]
    rows = [row for row in map(_row, comma.DictReader(io.StringIO(whole))) if row is not None]
    return [row for row in rows if row.step <= last]


def _row(cells: dict[str, str]) -> _Row | None:
    try:
        loss, lr, validation, drift = (float(cells[name]) if cells.get(name) else None for name in ("loss", "lr", "validation", "drift"))
        return _Row(int(cells["step"]), loss, lr, validation, float(cells.get("seconds") or 0), drift)
    except (KeyError, TypeError, ValueError):
        return None


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}); make room, or choose an output folder that can be written.") from error


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def tensorboard(events: Iterable[Event], folder: str | Path | None = None) -> Iterator[Event]:
    """Passes events through and writes scalars, samples and warnings for TensorBoard into `folder`, or else into `tensorboard` in the run's folder.

    Raises ValueError with the install command, before the run starts, where the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(f"TensorBoard's package does not import here ({error}); run `pip install tensorboard`.") from error
    return _board(events, _Board(Path(folder) if folder else None, SummaryWriter))


def _board(events: Iterable[Event], board: _Board) -> Iterator[Event]:
    with _closing(events, board.close):
        for event in events:
            board.take(event)
            yield event


class _Board:
    """One event file per start of the run; TensorBoard joins those of a folder."""

    def __init__(self, folder: Path | None, make_writer: Callable[..., Any]):
        self.folder, self.make_writer, self.writer = folder, make_writer, None
        self.steps: list[tuple[Stepped, float]] = []
        self.last = 0

    def take(self, event: Event) -> None:
        if isinstance(event, Started):
            self.last = event.start
            # purge_step hides what an interrupted part wrote behind the resumed step
            self.writer = self.make_writer(str(self.folder or event.folder / "tensorboard"), purge_step=event.start + 1 if event.start else None)
        elif isinstance(event, Stepped):
            self.last = event.step
            self.steps.append((event, time.time()))
        elif isinstance(event, Validated):
            self.writer.add_scalar("validation", event.loss, event.step)
        elif isinstance(event, Drifted):
            self.writer.add_scalar("language drift", event.drift, event.step)
        elif isinstance(event, Sampled):
            self.images(event)
        elif isinstance(event, Warned) and self.writer is not None:
            self.writer.add_text("warning", event.text, self.last)
        if len(self.steps) >= EVERY or isinstance(event, (Validated, Drifted, Sampled, Saved, Finished)):
            self.flush()

    def images(self, event: Sampled) -> None:
        import numpy

        for i, image in enumerate(event.images):
            self.writer.add_image(f"sample {i + 1}", numpy.asarray(image.convert("RGB")), event.step, dataformats="HWC")

    def flush(self) -> None:
        for event, seconds in self.steps:
            self.writer.add_scalar("loss", float(event.loss), event.step, walltime=seconds)
            self.writer.add_scalar("learning rate", event.lr, event.step, walltime=seconds)
        self.steps = []
        if self.writer is not None:
            self.writer.flush()

    def close(self) -> None:
        if self.writer is None:
            return
        try:
            self.flush()
        finally:
            self.writer.close()
            self.writer = None
