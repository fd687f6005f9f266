"""One piece of long work beside the page: how far it is, how long it still takes, a way to stop it, and what came of it.

    work = Work("tag", lambda told: tag_all(told))     # told(done, total) raises Stopped where somebody has asked for it
    work.start()
    work.status()                                      # {"name": "tag", "state": "running", "done": 12, "total": 400, "left": 33.0, ...}
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from .progress import sentence

LOG = logging.getLogger("lib_tuner")
GOING = ("running", "stopping")
TURN = "turn"  # the stage of what waits for the host
Told = Callable[..., None]  # done, total, and the name of the stage where there are several


class Stopped(Exception):
    """Somebody has asked the work to stop."""


class Progress:
    """How far something is: told by whoever does it, asked for by whoever looks. `state`: running, stopping, done, stopped or failed."""

    def __init__(self, name: str, **facts: Any):
        self.name, self.facts = name, facts  # facts: what whoever looks at it is told besides
        self.state, self.error, self.result, self.stage = "running", "", None, ""
        self.done = self.total = 0
        self._changing = threading.Lock()  # the state: one asks it to stop at the moment in which it ends
        self._began, self._first = time.monotonic(), 0.0

    def told(self, done: int, total: int, stage: str = "") -> None:
        """How far it is; each stage has a clock of its own. Raises Stopped where it shall go no further."""
        if self.state == "stopping":
            raise Stopped
        if not self.total or stage != self.stage:
            self._began, self._first = time.monotonic(), done
        self.done, self.total, self.stage = done, total, stage

    def status(self) -> dict[str, Any]:
        """What is shown of it; `left` in seconds, if what is left takes as long as what was."""
        made = self.done - self._first
        left = (time.monotonic() - self._began) / made * (self.total - self.done) if self.state == "running" and made > 0 else None
        return {"name": self.name, "state": self.state, "stage": self.stage, "done": self.done, "total": self.total, "left": left, "error": self.error, "result": self.result, **self.facts}


class Work(Progress):
    """Work in a thread of its own; `result` is what it returned."""

    def __init__(self, name: str, make: Callable[[Told], Any], **facts: Any):
        super().__init__(name, **facts)
        self._make = make
        self._thread = threading.Thread(target=self._run, name=f"tuner-{name}", daemon=True)

    @property
    def going(self) -> bool:
        """Whether it has not ended yet."""
        return self.state in GOING

    def start(self) -> Work:
        """Sets it to work."""
        self._thread.start()
        return self

    def stop(self, wait: float = 0.0) -> None:
        """Asks it to end at the next place where that is possible; waits at most so many seconds for it."""
        with self._changing:
            if self.state == "running":
                self.state = "stopping"
        if wait:
            self._thread.join(wait)

    def _run(self) -> None:
        try:
            self.result, state = self._make(self.told), "done"
        except Stopped:
            state = "stopped"
        except Exception as error:  # whatever it is, the folder is free again and somebody reads it
            LOG.warning("%s failed", self.name, exc_info=error)
            self.error, state = sentence(error), "failed"
        with self._changing:
            self.state = state
