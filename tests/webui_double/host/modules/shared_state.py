"""What goes on just now: the job, its counters, and what people want of it."""

from __future__ import annotations

import threading
import time
from typing import Any


class State:
    """`begin` clears what people wanted of the job before, `end` does not; and none of them resets `sampling_steps`."""

    def __init__(self) -> None:
        self.sampling_steps = 0
        self.time_start: float | None = None
        self.processing_has_refined_job_count = False
        self._command: str | None = None
        self._commanded = threading.Event()
        self._start_job("", 0)

    def _start_job(self, job: str | None, job_count: int) -> None:
        self.job, self.job_count, self.job_no, self.job_timestamp = job, job_count, 0, time.strftime("%Y%m%d%H%M%S")
        self.sampling_step, self.textinfo = 0, None
        self.skipped = self.interrupted = self.stopping_generation = False
        self.current_latent = self.current_image = None
        self.current_image_sampling_step = self.id_live_preview = 0

    def begin(self, job: str | None = "(unknown)") -> None:
        self._start_job(job, -1)
        self.processing_has_refined_job_count = False
        self.time_start = time.time()

    def end(self) -> None:
        self.job, self.job_count = "", 0

    def nextjob(self) -> None:
        self.job_no += 1
        self.sampling_step = self.current_image_sampling_step = 0

    def skip(self) -> None:
        self.skipped = True

    def interrupt(self) -> None:
        self.interrupted = True

    def stop_generating(self) -> None:
        self.stopping_generation = True

    def assign_current_image(self, image: Any) -> None:
        """A picture for the page to show while the job goes."""
        self.current_image, self.id_live_preview = image, self.id_live_preview + 1

    def dict(self) -> dict[str, Any]:
        names = "interrupted job job_count job_no job_timestamp sampling_step sampling_steps skipped stopping_generation"
        return {name: getattr(self, name) for name in names.split()}

    # ---- orders to the server ----------------------------------------------------------------------------------------

    @property
    def server_command(self) -> str | None:
        return self._command

    @server_command.setter
    def server_command(self, value: str | None) -> None:
        self._command = value
        self._commanded.set()

    @property
    def need_restart(self) -> bool:
        return self._command == "restart"

    def request_restart(self) -> None:
        """Reload UI, which interrupts whatever goes."""
        self.interrupted, self.server_command = True, "restart"

    def wait_for_server_command(self, timeout: float | None = None) -> str | None:
        """The order that came, which is done with by that."""
        self._commanded.wait(timeout)
        self._commanded.clear()
        command, self._command = self._command, None
        return command
