"""Who may talk to the standalone program: everybody on this machine, or from elsewhere whoever knows the password.

It stands in front of the whole application, the page and our own routes alike, since gradio's login covers only gradio's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import PlainTextResponse

LOCAL = ("127.0.0.1", "localhost", "[::1]")
App = Callable[..., Awaitable[None]]


class Door:
    """ASGI middleware: HTTP Basic where `login` (user, password) is set, else only addresses of this machine.

    The second is for browsers: a page from elsewhere may point its own name at 127.0.0.1 (DNS rebinding), and then its scripts would be let in.
    """

    def __init__(self, app: App, login: tuple[str, str] | None):
        self.app, self.login = app, login

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] not in ("http", "websocket") or _own_origin(headers) and self._opens(headers):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif not _own_origin(headers):
            await PlainTextResponse("This page does not answer to other sites.", 403)(scope, receive, send)
        elif self.login:
            answer = PlainTextResponse("This page needs its user and password.", 401, {"WWW-Authenticate": 'Basic realm="Tuner", charset="UTF-8"'})
            await answer(scope, receive, send)
        else:
            await PlainTextResponse("This page answers to addresses of its own machine only; start it with --listen --auth user:password.", 403)(scope, receive, send)

    def _opens(self, headers: dict[bytes, bytes]) -> bool:
        if self.login is None:
            host = headers.get(b"host", b"").decode("latin-1")
            return (host if host.endswith("]") else host.rpartition(":")[0] or host).lower() in LOCAL
        kind, _, code = headers.get(b"authorization", b"").partition(b" ")
        try:
            given = base64.b64decode(code, validate=True) if kind.lower() == b"basic" else b""
        except binascii.Error:
            return False
        return hmac.compare_digest(given, ":".join(self.login).encode())


def _own_origin(headers: dict[bytes, bytes]) -> bool:
    """Whether a request that says which site it comes from comes from this one; gradio's own routes take what any site posts."""
    origin = headers.get(b"origin")
    return origin is None or origin.partition(b"//")[2] == headers.get(b"host")


def parse_login(text: str) -> tuple[str, str]:
    """`user:password` as a pair. Raises ValueError."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ValueError("--auth takes user:password, both of at least one letter.")
    return user, password
