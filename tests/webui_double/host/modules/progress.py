"""The tasks that wait, the one that goes, those that are over, and how far the one that goes is."""

from __future__ import annotations

import base64
import io
import random
import time
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Any

from . import shared

current_task: str | None = None
pending_tasks: OrderedDict[str, float] = OrderedDict()
finished_tasks: deque[str] = deque(maxlen=16)
recorded_results_limit = 2
recorded_results: deque[tuple[str, Any]] = deque(maxlen=recorded_results_limit)


def create_task_id(task_type: str) -> str:
    """A new id. Takes it from Python's random numbers, which everybody has in common."""
    return f"task({task_type}-{random.getrandbits(28):07x})"


def add_task_to_queue(id_job: str) -> None:
    pending_tasks[id_job] = time.time()


def start_task(id_task: str | None) -> None:
    global current_task
    pending_tasks.pop(id_task, None)
    current_task = id_task


def finish_task(id_task: str | None) -> None:
    global current_task
    current_task = None if current_task == id_task else current_task
    finished_tasks.append(id_task)


def record_results(id_task: str | None, res: Any) -> None:
    recorded_results.append((id_task, res))


@dataclass
class ProgressRequest:
    """What the page asks, about twice a second."""

    id_task: str
    id_live_preview: int = -1
    live_preview: bool = True


@dataclass
class ProgressResponse:
    """What it is told."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None = None
    eta: float | None = None
    live_preview: str | None = None
    id_live_preview: int | None = None
    textinfo: str | None = None


def progressapi(req: ProgressRequest) -> ProgressResponse:
    """The answer for one task."""
    task = req.id_task
    if task != current_task:
        waiting = [*pending_tasks]
        text = f"In queue: {waiting.index(task) + 1}/{len(waiting)}" if task in pending_tasks else "Waiting..."
        return ProgressResponse(False, task in pending_tasks, task in finished_tasks, id_live_preview=-1, textinfo=text)
    state = shared.state
    done = _part_done(state)
    eta = (time.time() - state.time_start) * (1 / done - 1) if done else None
    answer = ProgressResponse(True, False, False, done, eta, None, req.id_live_preview, state.textinfo)
    if req.live_preview and state.current_image is not None and state.id_live_preview != req.id_live_preview:
        answer.live_preview, answer.id_live_preview = _as_url(state.current_image), state.id_live_preview
    return answer


def _part_done(state: Any) -> float:
    """Jobs, and of the one that goes its steps."""
    if state.job_count <= 0:
        return 0.0
    steps = state.sampling_step / state.sampling_steps if state.sampling_steps > 0 else 0.0
    return min((state.job_no + steps) / state.job_count, 1.0)


def _as_url(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def setup_progress_api(app: Any) -> None:
    app.post("/internal/progress", response_model=ProgressResponse)(progressapi)
