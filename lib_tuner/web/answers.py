"""How a route answers: with what was asked for, or with the one sentence of a refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse, Response


class Answer(JSONResponse):
    """JSON in ASCII: names and captions of unknown encodings hold letters that UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def answer(make: Callable[[], Any]) -> Response:
    """What `make` returns, or its one sentence with status 400."""
    try:
        return Answer(make())
    except (ValueError, OSError) as error:
        return Answer({"error": str(error)}, 400)


def found(make: Callable[[], Any]) -> Any:
    """What `make` returns, or its one sentence with status 404: for what is no JSON, a picture or a file."""
    try:
        return make()
    except (ValueError, OSError) as error:
        raise HTTPException(404, str(error)) from error
