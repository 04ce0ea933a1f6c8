"""What every request passes before anything of it is read: host, origin, token, size. And the headers of every answer.

A page of another site must not speak to a server on the reader's own machine: its requests name another origin, and a
name that it lets point to this machine (DNS rebinding) is another host.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelwise.errors import DataError
from labelwise.serve.audit import Audit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
WITHOUT_TOKEN = ("/", "/health", "/auth/", "/auth/token")  # the page, and where clients bring the token
_SMALL = 65536  # bytes of a request without files
_POLLED = "/jobs/{name}"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Gate:
    """Surrounds the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: frozenset[str] | None,
        token: str | None,
        upload_bytes: int,
        audit: Audit,
    ):
        """`hosts` are the names by which clients may call the server; None for any, then it has a `token`."""
        self._app, self._hosts, self._audit = app, hosts, audit
        self._token = None if token is None else token.encode()
        self._upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no other protocol is spoken
            return
        start, status, length = time.monotonic(), 500, 0
        most = self._most(scope)

        async def counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > most:
                raise too_large(most)
            return message

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        try:
            await (refusal or self._app)(scope, counted, told)
        finally:
            self._note(scope, status, time.monotonic() - start)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self._hosts is not None and _without_port(host) not in self._hosts:
            expected = "localhost, 127.0.0.1 or [::1]"
            return _refused(403, "forbidden", f"the server is not called by this name; expected {expected}")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return _refused(403, "forbidden", "a page of another origin may not use this server")
        if not self._is_known(scope["path"], headers):
            return _refused(
                401, "unauthorised", "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > (most := self._most(scope)):
            return _refused(413, "too-large", too_large(most).what, {"Connection": "close"})
        return None

    def _most(self, scope: Scope) -> int:
        """The most bytes of a request: only forms go to the disk piece by piece, others into memory."""
        is_form = Headers(scope=scope).get("content-type", "").startswith("multipart/form-data")
        return self._upload_bytes if is_form and scope["path"] not in WITHOUT_TOKEN else _SMALL

    def _is_known(self, path: str, headers: Headers) -> bool:
        if self._token is None or path in WITHOUT_TOKEN:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)

    def _note(self, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        """Asking how far a job is, again and again, is not noted; paths stand there without what a client put in."""
        route = getattr(scope.get("route"), "path", "")
        if scope["method"] == "GET" and route == _POLLED and status < 400:
            return
        self._audit.write(
            "request",
            request=f"{scope['method']} {route or '(unknown)'}",
            status=status,
            seconds=round(seconds, 3),
            job=scope.get("state", {}).get("job"),
        )


def too_large(limit: int) -> DataError:
    """The error of a request that is larger than allowed."""
    return DataError(f"the request is larger than {limit:,} bytes", code="too-large")


def _without_port(host: str) -> str:
    return host[: host.rfind("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _refused(status: int, code: str, what: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": "Refused", "code": code, "message": what}, status, headers)
