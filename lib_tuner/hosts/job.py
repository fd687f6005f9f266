"""A run as one of the host's jobs: its turn in the queue, its place in the progress, and what interrupts it. `w` is the host's modules."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from ..config import options
from ..settings import TrainConfig

JOB = "task(tuner-"  # how the ids of our jobs begin
DECIDED = ("checkpoint", "memory.device", "memory.precision", "memory.channels_last")  # settings that are the host's own choice
RELOADING = 0.3  # seconds within which an interruption turns out to be a Reload UI


def refuse_decided(values: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that would have no effect here: what is trained, where and in which precision is what the host has loaded."""
    plain = {o.key: o.default for o in options(TrainConfig)}
    for key in DECIDED:
        if values[key] != plain[key]:
            raise ValueError(f"{key}: inside the WebUI this is what the WebUI has loaded and computes in, so {values[key]!r} would have no effect: leave it out.")


@contextmanager
def job(w: Any) -> Iterator[None]:
    """The host's queue lock, with a job of ours in its progress."""
    task = f"{JOB}{uuid.uuid4().hex[:7]})"  # the host's own maker of ids would draw from Python's random numbers
    w.progress.add_task_to_queue(task)
    with ExitStack() as stack:
        stack.callback(w.progress.finish_task, task)
        stack.callback(w.progress.pending_tasks.pop, task, None)
        stack.enter_context(w.call_queue.queue_lock)
        w.shared.state.begin(job=task)
        stack.callback(_end, w.shared.state)
        w.progress.start_task(task)
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
