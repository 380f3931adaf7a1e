"""ASGI middleware: limits on request bodies, checks against cross-site requests, security headers, and metrics."""

import asyncio
import sys
import time
import traceback
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darklens.serve.limits import LOOPBACK, Settings
from darklens.serve.prometheus import Metrics
from darklens.serve.responses import RequestError

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; object-src 'none'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-embedder-policy": "require-corp",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}
_TOTAL_BODIES = 8  # bytes of all bodies in memory, in units of the largest allowed body
# The server reads on after it has rejected a body, so that the client finishes sending and reads the response:
_DRAIN_BODIES, _DRAIN_SECONDS = 4, 3.0  # at most this much, in units of the largest allowed body, and this long


class Middleware:
    """ASGI middleware around the application.

    Args:
        app: The application.
        settings: Limits.
        metrics: Counters of requests.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._budget = _Budget(_TOTAL_BODIES * settings.max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on to the application, or reject it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        self._metrics.accepted.inc()
        body = _Body(receive, self._settings, self._budget)
        response = _Response(send, body)
        try:
            self._check(scope, body)
            await self._app(scope, body, response)
        except RequestError as error:
            await response.send_error(error)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not response.code:
                await response.send_error(RequestError(500, "Unexpected error; see the log of the server."))
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.inc(route, str(response.code or 499))
            self._metrics.seconds.observe(time.perf_counter() - start, route)

    def _check(self, scope: Scope, body: "_Body") -> None:
        """Reject requests that another site sends through a visitor's browser, and bodies announced as too large."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._settings.is_local and not _is_local(host):
            raise RequestError(421, "This server is only reachable as localhost; use that name in the address.")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(403, "Requests from pages of other sites are rejected; use the page of this server.")
        length = headers.get(b"content-length", "0")
        if length.isdigit() and int(length) > self._settings.max_bytes:
            raise body.too_large()


def _is_local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower()
    if name in LOOPBACK:
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


class _Budget:
    """Bytes that the bodies of all requests may occupy together."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0


class _Body:
    """Receives a request body within the limits."""

    def __init__(self, receive: Receive, settings: Settings, budget: _Budget) -> None:
        self._receive, self._settings, self._budget = receive, settings, budget
        self.complete = False
        self.size = self._reserved = 0
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        if self.complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._deadline is None:
            self._deadline = now + self._settings.receive_timeout
        try:
            message = await asyncio.wait_for(self._receive(), max(self._deadline - now, 0.0))
        except TimeoutError:
            raise RequestError(
                408, f"The request did not arrive within {self._settings.receive_timeout:g} s; send it faster."
            ) from None
        n = self._count(message)
        self._budget.used += n
        self._reserved += n
        if self.size > self._settings.max_bytes:
            raise self.too_large()
        if self._budget.used > self._budget.limit:
            raise RequestError(503, "The server is receiving too many other requests; try again in a moment.")
        return message

    def too_large(self) -> RequestError:
        return RequestError(
            413, f"A request may have at most {self._settings.max_mb:g} MB; send fewer files, or cut out the lenses."
        )

    async def drain(self) -> None:
        """Read and discard the rest of a rejected body, within bounds."""
        limit = self.size + _DRAIN_BODIES * self._settings.max_bytes
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while not self.complete and self.size < limit:
                    self._count(await self._receive())
        except TimeoutError:
            pass

    def release(self) -> None:
        self._budget.used -= self._reserved
        self._reserved = 0

    def _count(self, message: Message) -> int:
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        n = len(message.get("body", b""))
        self.size += n
        return n


class _Response:
    """Sends a response with the security headers."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body
        self.code = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            if self.code >= 400:
                await self._body.drain()
            present = {name for name, _ in message.get("headers", [])}
            added = {name: value for name, value in HEADERS.items() if name.encode() not in present}
            if not self._body.complete and self.code >= 400:
                added["connection"] = "close"
            message = {**message, "headers": [*message.get("headers", []), *_encoded(added.items())]}
        await self._send(message)

    async def send_error(self, error: RequestError) -> None:
        headers = {"content-type": "application/json", "content-length": str(len(error.body)), **error.headers}
        await self({"type": "http.response.start", "status": error.code, "headers": _encoded(headers.items())})
        await self({"type": "http.response.body", "body": error.body})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
