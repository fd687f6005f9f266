"""Who may talk to the program: everybody on this machine, or from elsewhere whoever knows the password.

The Door stands in front of the whole standalone application, the page and our own routes alike, since gradio's login covers only gradio's.
The Guard is for our routes in an application that is not ours, the WebUI's.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException, Request
from starlette.responses import PlainTextResponse

LOCAL = ("127.0.0.1", "localhost", "[::1]")
ASK = {"WWW-Authenticate": 'Basic realm="Tuner", charset="UTF-8"'}  # a browser then asks whoever sits before it
FOREIGN = "This page does not answer to other sites; a proxy in front of it has to pass the header Host on."
PORTS = {b"http": b":80", b"https": b":443"}  # a browser leaves them out
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
            await PlainTextResponse(FOREIGN, 403)(scope, receive, send)
        elif self.login:
            answer = PlainTextResponse("This page needs its user and password.", 401, ASK)
            await answer(scope, receive, send)
        else:
            await PlainTextResponse("This page answers to addresses of its own machine only; start it with --listen --auth user:password.", 403)(scope, receive, send)

    def _opens(self, headers: dict[bytes, bytes]) -> bool:
        return _is_local(headers) if self.login is None else _knows(headers, self.login)


class Guard:
    """A dependency of routes in the WebUI: lets in its page, its API's users and its page's users. Raises HTTPException for all others.

    `key` is in the page alone, which the WebUI shows after its own login, and comes back as a header, or as a cookie where a picture is asked for.
    `logins` are those of --api-auth; `app` is gradio's, which keeps who has logged in; `closed` is the sentence of a host where nobody is let in.
    """

    def __init__(self, key: str, logins: list[tuple[str, str]], page_login: bool, app: Any, closed: str = ""):
        self.key, self.logins, self.page_login, self.app, self.closed = key, logins, page_login, app, closed

    def admit(self, request: Request) -> None:
        """The dependency itself."""
        if self.closed:
            raise HTTPException(403, self.closed)
        headers = dict(request.scope["headers"])
        if self._is_key(request.headers.get("x-tuner", "")):  # which no other site knows; a proxy may have changed Host
            return
        if not _own_origin(headers):
            raise HTTPException(403, FOREIGN)
        if self._has_cookie(request) or any(_knows(headers, login) for login in self.logins) or self._is_user(request):
            return
        if self.logins or self.page_login:
            raise HTTPException(401, "This needs the WebUI's login: user and password of --api-auth, or the page's.", ASK if self.logins and _is_read(headers) else None)
        if not _is_local(headers):
            raise HTTPException(403, "Without a login this answers to addresses of its own machine only.")

    def _has_cookie(self, request: Request) -> bool:
        return any(self._is_key(value) for name, value in request.cookies.items() if name.startswith("tuner-"))

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.key.encode())

    def _is_user(self, request: Request) -> bool:
        """Whether the cookie is of somebody who has logged in to the page."""
        token = request.cookies.get("access-token") or request.cookies.get("access-token-unsecure")
        return self.page_login and token is not None and getattr(self.app, "tokens", {}).get(token) is not None


def _is_local(headers: dict[bytes, bytes]) -> bool:
    host = headers.get(b"host", b"").decode("latin-1")
    return (host if host.endswith("]") else host.rpartition(":")[0] or host).lower() in LOCAL


def _knows(headers: dict[bytes, bytes], login: tuple[str, ...]) -> bool:
    """Whether the request brings user and password."""
    kind, _, code = headers.get(b"authorization", b"").partition(b" ")
    try:
        given = base64.b64decode(code, validate=True) if kind.lower() == b"basic" else b""
    except binascii.Error:
        return False
    return hmac.compare_digest(given, ":".join(login).encode())


def _own_origin(headers: dict[bytes, bytes]) -> bool:
    """Whether a request that says which site it comes from comes from this one; gradio's own routes take what any site posts."""
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    scheme, _, name = (origin or b"").partition(b"://")
    return origin is None or bool(name) and name in (host, host.removesuffix(PORTS.get(scheme, b"")))


def _is_read(headers: dict[bytes, bytes]) -> bool:
    """Whether somebody looks at the answer itself, or a program does; for a page's scripts and pictures a browser would open its own window for a login again and again."""
    accept = headers.get(b"accept")
    return not accept or b"text/html" in accept or not headers.get(b"user-agent", b"").startswith(b"Mozilla/")  # PowerShell calls itself Mozilla, and accepts nothing by name


def parse_login(text: str) -> tuple[str, str]:
    """`user:password` as a pair. Raises ValueError."""
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise ValueError("--auth takes user:password, both of at least one letter.")
    return user, password
