"""A run as a person watches it: one line with step, loss, speed and time left, and above it what was saved, measured or warned of."""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

from .events import Drifted, Event, Finished, Preparing, Sampled, Saved, Started, Stepped, Validated, Warned
from .words import lacks_memory, writable

BAR = 20  # characters
WINDOW = 50  # steps that the speed is the mean of


class Status:
    """A line that is rewritten in place on a terminal; elsewhere (a log, a pipe) it is written anew at most twice a minute."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self.stream, self.clock = stream, clock
        self.live = stream.isatty()
        self.every = 0.2 if self.live else 30.0  # seconds
        self.width = 0  # of what stands in the line now
        self.last = -self.every if self.live else clock()

    @property
    def due(self) -> bool:
        """Whether `show` would write now: a caller saves itself the work of a text that nobody sees."""
        return self.clock() - self.last >= self.every

    def show(self, text: str) -> None:
        """Puts `text` into the line, unless the last one is too fresh."""
        if not self.due:
            return
        self.last = self.clock()
        if self.live:
            text = text[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            self._write(text + "\n")

    def line(self, text: str) -> None:
        """Writes a line that stays."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Takes the rewritten line away."""
        if self.width:
            self._write("\r" + " " * self.width + "\r")
            self.width = 0

    def _write(self, text: str) -> None:
        self.stream.write(writable(text, self.stream))
        self.stream.flush()


def progress(events: Iterable[Event], stream: TextIO, clock: Callable[[], float] = time.monotonic) -> Iterator[Event]:
    """Passes a run's events through, and shows them on `stream`; closing it closes the run.

    The loss is read only where it is shown: `float(loss)` makes a GPU wait.
    """
    status, times, total = Status(stream, clock), deque(maxlen=WINDOW + 1), 0
    try:
        for event in events:
            if isinstance(event, Started):
                total = event.steps
            if isinstance(event, (Started, Stepped)):
                times.append(clock())
            if isinstance(event, Stepped):
                if status.due or event.step == total:
                    status.show(step_line(event.step, total, float(event.loss), seconds_per_step(times)))
            elif isinstance(event, Preparing):
                status.show(f"{event.text} {event.done}/{event.total}" if event.total else event.text)
            elif line := line_of(event):
                status.line(line)
            yield event
    finally:
        status.clear()
        getattr(events, "close", lambda: None)()


def line_of(event: Event) -> str:
    """What is said of an event that deserves a line of its own."""
    match event:
        case Started(start=start, steps=steps, folder=folder):
            return f"Steps {start} to {steps}, files in {folder}"
        case Sampled(step=step, paths=paths):
            return f"Step {step}: samples {', '.join(map(str, paths))}"
        case Saved(step=step, paths=paths, report=report):
            return f"Step {step}: saved {', '.join(map(str, paths))}{f' ({report})' if report else ''}"
        case Validated(step=step, loss=loss):
            return f"Step {step}: validation loss {float(loss):.4f}"
        case Drifted(step=step, drift=drift):
            return f"Step {step}: language drift {drift:.4f}"
        case Warned(text=text):
            return f"Warning: {text}"
        case Finished(step=0, reason="stopped"):
            return "Stopped before the first step; nothing was learned yet, so nothing is saved."
        case Finished(step=step, reason=reason):
            return f"{_ENDS.get(reason, reason)} at step {step}."
    return ""


_ENDS = {"done": "Done", "stopped": "Stopped and saved", "nan": "The loss is no longer a number: stopped, the last good weights are kept,"}


def step_line(step: int, total: int, loss: float, seconds: float | None) -> str:
    """`[=====>    ] step 120/1000  loss 0.1234  0.52 s/step  7 min 38 s left`; no speed is known after one step of a resumed run."""
    done = BAR * step // max(total, 1)
    bar = ("=" * done + ">" * (done < BAR)).ljust(BAR)
    speed = "" if seconds is None else f"  {seconds:.3g} s/step  {duration(seconds * (total - step))} left"
    return f"[{bar}] step {step}/{total}  loss {loss:.4f}{speed}"


def seconds_per_step(times: deque) -> float | None:
    """The mean over the last steps, with what was sampled and saved between them."""
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else None


def duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `1 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sentence(error: BaseException) -> str:
    """What a person reads of an error: its own sentence, or what kind of fault it is."""
    if lacks_memory(error):
        return "There was not enough memory: choose a smaller batch or resolution, turn gradient checkpointing on, or close other programs."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    return f"The run ended by a fault of the Tuner or of a package ({type(error).__name__}: {error}); the details help whoever mends it."


def reason_of(error: BaseException) -> str:
    """Why something of a host's own failed, for within a sentence."""
    return sentence(error).rstrip(".") if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {error}"
