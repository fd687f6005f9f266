"""The queue of whatever needs the model: one at a time, in the order of asking."""

from __future__ import annotations

import functools
import html
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from . import errors, progress, shared


class FIFOLock:
    """Whoever asked first has it first. Not re-entrant: who asks again while holding it waits for itself."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[object] = deque()  # the first is the holder's

    def acquire(self, blocking: bool = True) -> bool:
        ticket = object()
        with self._changed:
            if self._tickets and not blocking:
                return False
            self._tickets.append(ticket)
            return self._changed.wait_for(lambda: self._tickets[0] is ticket)

    def release(self) -> None:
        with self._changed:
            if not self._tickets:
                raise RuntimeError("The lock is not held.")
            self._tickets.popleft()
            self._changed.notify_all()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


queue_lock = FIFOLock()


def wrap_queued_call(func: Callable[..., Any]) -> Callable[..., Any]:
    """The function, when its turn comes."""

    @functools.wraps(func)
    def in_turn(*args: Any, **kwargs: Any) -> Any:
        with queue_lock:
            return func(*args, **kwargs)

    return in_turn


def wrap_gradio_gpu_call(func: Callable[..., Any], extra_outputs: list[Any] | None = None) -> Callable[..., Any]:
    """A button's function as a job: its first argument is the task's id, its last output a text. A generator's body runs when the job is over already."""

    @functools.wraps(func)
    def as_job(*args: Any, **kwargs: Any) -> Any:
        task = next((str(first) for first in args[:1] if re.fullmatch(r"task\(.*\)", str(first))), None)
        if task:
            progress.add_task_to_queue(task)
        with queue_lock:
            shared.state.begin(job=task)
            progress.start_task(task)
            try:
                outputs = func(*args, **kwargs)
                progress.record_results(task, outputs)
            finally:
                progress.finish_task(task)
                shared.state.end()
        return outputs

    return wrap_gradio_call(as_job, extra_outputs, add_stats=True)


def wrap_gradio_call(func: Callable[..., Any], extra_outputs: list[Any] | None = None, add_stats: bool = False) -> Callable[..., Any]:
    """An error becomes the last output; otherwise the time is added there, which raises TypeError where that is no text. An interruption is forgotten."""

    @functools.wraps(func)
    def answered(*args: Any, **kwargs: Any) -> list[Any]:
        start = time.perf_counter()
        try:
            outputs = [*func(*args, **kwargs)]
        except Exception as error:
            errors.report(f"{getattr(func, '__name__', 'A job')} failed", exc_info=True)
            shared.state.job = ""
            outputs = [*(extra_outputs or [None, ""]), f'<p role="alert">{html.escape(repr(error))}</p>']
        state = shared.state
        state.job_count, state.interrupted, state.skipped, state.stopping_generation = 0, False, False, False
        if add_stats:
            outputs[-1] += f"<small>{time.perf_counter() - start:.1f} s</small>"
        return outputs

    return answered
