"""How much memory this process has taken; for measurements in processes that load no torch, too."""

from __future__ import annotations

import sys


def process_peak() -> float | None:
    """The largest resident memory of this process in GB, None where the system does not tell.

    Linux's VmHWM where there is one: getrusage's ru_maxrss is handed down, so that a child starts with what its parent had.
    """
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) * 1024 / 1e9 for line in file if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _maxrss()


def _maxrss() -> float | None:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
