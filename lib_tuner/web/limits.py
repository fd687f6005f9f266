"""How large a request may be: whoever may use the routes may not fill the memory of the machine with one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

LARGEST = 16 << 20  # bytes of a body; the numbers of a million pictures, or a caption as long as a book


class Limited(APIRoute):
    """A route that refuses a body which is larger, or does not say how large it is, before it is read."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:
        """The route's handler behind the check."""
        handler = super().get_route_handler()

        async def checked(request: Request) -> Any:
            chunked = "transfer-encoding" in request.headers
            size = "" if chunked else request.headers.get("content-length", "0")
            if not size.isdecimal():
                return JSONResponse({"error": "The request does not say how large it is; send Content-Length."}, 411)
            if int(size) > LARGEST:
                return JSONResponse({"error": f"The request is larger than {LARGEST >> 20} MB; send less at once."}, 413)
            return await handler(request)

        return checked
