"""A run as one of the host's jobs: its turn in the queue, its place in the progress, and what interrupts it. `w` is the host's modules."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..config import options
from ..settings import TrainConfig

JOB = "task(tuner-"  # how the ids of our jobs begin
DECIDED = ("checkpoint", "memory.device", "memory.precision", "memory.channels_last")  # settings that are the host's own choice
POLL = 0.1  # seconds after which who waits for the host is asked whether they still want it
RELOADING = 0.3  # seconds within which an interruption turns out to be a Reload UI


def refuse_decided(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that would have no effect here: what is trained, where and in which precision is what the host has loaded."""
    plain = {o.key: o.default for o in options(TrainConfig)}
    for key in DECIDED:
        if values[key] != plain[key]:
            raise ValueError(f"{key}: inside the WebUI this is what the WebUI has loaded and computes in, so {values[key]!r} would have no effect: leave it out.")


class Turn:
    """A place in the queue of the host's lock, which has come or can be left. The lock itself knows only waiting without an end, so a thread waits there."""

    def __init__(self, lock: Any):
        self._lock, self._here, self._left, self._deciding = lock, threading.Event(), False, threading.Lock()
        if lock.acquire(blocking=False):
            self._here.set()
        else:
            threading.Thread(target=self._wait, name="tuner-turn", daemon=True).start()

    def _wait(self) -> None:
        self._lock.acquire()
        with self._deciding:
            if self._left:
                self._lock.release()
            else:
                self._here.set()

    def came(self, seconds: float = POLL) -> bool:
        """Whether it has come, at the latest after so many seconds."""
        return self._here.wait(seconds)

    def leave(self) -> None:
        """Gives the lock back, or the place where the turn has not come yet."""
        with self._deciding:
            self._left = True
            if self._here.is_set():
                self._lock.release()


@contextmanager
def queued(w: Any) -> Iterator[Callable[[], bool]]:
    """A place in the host's queue. What is given says whether its turn has come, and from then on a job of ours is in the host's progress."""
    task = f"{JOB}{uuid.uuid4().hex[:7]})"  # the host's own maker of ids would draw from Python's random numbers
    w.progress.add_task_to_queue(task)
    with ExitStack() as stack:
        stack.callback(w.progress.finish_task, task)
        stack.callback(w.progress.pending_tasks.pop, task, None)
        turn = Turn(w.call_queue.queue_lock)
        stack.callback(turn.leave)

        def came() -> bool:
            if not turn.came():
                return False
            w.shared.state.begin(job=task)
            stack.callback(_end, w.shared.state)
            w.progress.start_task(task)
            return True

        yield came


@contextmanager
def job(w: Any, waits: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """The host's queue lock, with a job of ours in its progress. `waits` is called while others have it; what it raises ends the waiting."""
    with queued(w) as came:
        while not came():
            waits()
        yield


def _end(state: Any) -> None:
    state.end()
    state.interrupted = state.skipped = False


def interrupted(shared: Any) -> bool:
    """Whether somebody pressed Interrupt; a Reload UI presses it too, for whatever goes, and that need not end a run."""
    state = shared.state
    if not (state.interrupted or getattr(state, "stopping_generation", False)):
        return False
    end = time.monotonic() + RELOADING
    while time.monotonic() < end and state.interrupted:
        if _page_ends(shared):
            state.interrupted = False
            return False
        time.sleep(0.01)
    return bool(state.interrupted or getattr(state, "stopping_generation", False))


def _page_ends(shared: Any) -> bool:
    """Whether the page is being drawn anew or closed."""
    server = getattr(getattr(shared, "demo", None), "server", None)
    return shared.state.server_command == "restart" or bool(getattr(server, "should_exit", False))
