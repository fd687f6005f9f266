"""How a route answers: with what was asked for, or with the one sentence of a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from fastapi.responses import FileResponse, JSONResponse, Response

from ..datasets import NotOpen


class Answer(JSONResponse):
    """JSON in ASCII: names and captions of unknown encodings hold letters that UTF-8 has no bytes for."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def answer(make: Callable[[], Any]) -> Response:
    """What `make` returns, or its one sentence with status 400; 404 where the folder it is about is not open any more."""
    try:
        return Answer(make())
    except (ValueError, OSError) as error:
        return Answer({"error": str(error)}, 404 if isinstance(error, NotOpen) else 400)


def found(make: Callable[[], Any]) -> Any:
    """What `make` returns, or its one sentence with status 404: for what is no JSON, a picture or a file."""
    try:
        return make()
    except (ValueError, OSError) as error:
        raise HTTPException(404, str(error)) from error


def file_answer(path: Path, name: str = "", **more: Any) -> FileResponse:
    """A file to download under its name, or another; `_` stands for bytes of it that are no text, which a header cannot hold."""
    return FileResponse(path, filename=re.sub(r"[\ud800-\udfff]", "_", name or path.name), **more)
