"""Errors that the host reports and goes on after. Whoever tests looks into `exception_records`."""

from __future__ import annotations

import logging
import sys
from collections import deque
from typing import Any

LOG = logging.getLogger("webui")
exception_records: deque[dict[str, Any]] = deque(maxlen=5)


def report(message: str, *, exc_info: bool = False) -> None:
    """Says what went wrong; the error that is being handled, if there is one, is kept."""
    _keep(sys.exc_info()[1], message)
    LOG.error("%s", message, exc_info=exc_info)


def display(e: BaseException, task: str, *, full_traceback: bool = False) -> None:
    """As `report`, for an error at hand."""
    _keep(e, task)
    LOG.error("%s", task, exc_info=e)


def _keep(error: BaseException | None, message: str) -> None:
    if error is not None:
        exception_records.append({"error": error, "message": message})
