"""How a route answers: with what was asked for, or with the one sentence of a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi.responses import JSONResponse, Response


def answer(make: Callable[[], Any]) -> Response:
    """What `make` returns, or its one sentence with status 400."""
    try:
        return JSONResponse(make())
    except (ValueError, OSError) as error:
        return JSONResponse({"error": str(error)}, 400)
