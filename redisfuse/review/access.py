"""Decides which requests may see the pages, and seals every response.

The port is on loopback, but other users, and every web page that the user visits, can send requests to it. So a request
needs the name of this server (no other name that resolves to 127.0.0.1), the cookie that the one-time token was
exchanged for, and, to change anything, the origin of these pages and a token that only they contain.
"""

from __future__ import annotations

import hmac
import secrets
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "redisfuse-review"
SAFE_METHODS = ("GET", "HEAD")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with it, browsers send `Origin: null`.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}

_OPENED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url=./">
<title>redisfuse</title></head>
<body><p><a href="./">Review the journal</a></p></body></html>
"""


class AccessKeys:
    """The secrets of one server, which live as long as its process.

    The folder is in the path of every page, so that the cookie is sent to no other server on this host: cookies have
    no port.
    """

    def __init__(self) -> None:
        self.folder = secrets.token_urlsafe(12)
        self.csrf_token = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)
        self._token: str | None = secrets.token_urlsafe(32)  # None: it was used

    @property
    def first_path(self) -> str:
        """The path with the one-time token, which opens the pages."""
        return f"/{self.folder}/open?token={self._token}"

    def exchange(self, token: str) -> str | None:
        """Return the Set-Cookie header for the one-time token; None for any other."""
        if self._token is None or not hmac.compare_digest(token.encode(), self._token.encode()):
            return None
        self._token = None
        return f"{COOKIE}={self._cookie}; Path=/{self.folder}/; HttpOnly; SameSite=Strict"

    def is_cookie(self, header: str) -> bool:
        """Return whether a Cookie header has the cookie."""
        try:
            morsel = SimpleCookie(header).get(COOKIE)
        except CookieError:
            return False
        return morsel is not None and hmac.compare_digest(morsel.value.encode(), self._cookie.encode())

    def is_csrf_token(self, token: str) -> bool:
        """Return whether a form has the token of these pages."""
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.csrf_token.encode())


class AccessGuard:
    """Passes only permitted requests to the pages."""

    def __init__(self, app: ASGIApp, keys: AccessKeys, port: int) -> None:
        self._app = app
        self._keys = keys
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with the headers that all responses have."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        response = self._refuse(Request(scope))
        await (response or self._app)(scope, receive, send_sealed)

    def _refuse(self, request: Request) -> Response | None:
        """Return the response to a request that does not reach the pages."""
        headers = request.headers
        if headers.get("host", "") not in self._hosts:
            return _explain(421, f"This server is {self._hosts[0]}, and answers under no other name.")
        if request.url.path == f"/{self._keys.folder}/open" and request.method in SAFE_METHODS:
            return self._open(request)
        if not self._keys.is_cookie(headers.get("cookie", "")):
            return _explain(403, "Open the address that `redisfuse review` printed. It works once.")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _explain(403, "This request comes from another site.")
        if request.method not in SAFE_METHODS and not _is_own_origin(headers):
            return _explain(403, "This form comes from another site.")
        return None

    def _open(self, request: Request) -> Response:
        cookie = self._keys.exchange(request.query_params.get("token", "")) if request.method == "GET" else None
        if cookie is None:
            return _explain(403, "This address was used, or is wrong. Start `redisfuse review` again.")
        # No redirection: after a navigation from another site, a browser sends no SameSite=Strict cookie with it.
        response = HTMLResponse(_OPENED)
        response.headers["Set-Cookie"] = cookie
        return response


def _is_own_origin(headers: Headers) -> bool:
    return headers.get("origin") == f"http://{headers['host']}"


def _explain(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
