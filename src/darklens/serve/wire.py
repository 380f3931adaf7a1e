"""Between server and application: sizes and times of bodies, headers of every answer, and what is counted of each."""

import asyncio
import sys
import time
import traceback
from collections.abc import Iterable
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from darklens.serve.prometheus import Metrics
from darklens.serve.refusal import Refusal
from darklens.serve.settings import LOOPBACK, Settings

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
_ALL_BODIES = 8  # times the largest body: what all requests together may hold
_REST, _REST_SECONDS = 4, 3.0  # times the largest body, and seconds: what is read of a refused one, so that the client
# has sent it all and looks at the answer


class Wire:
    """ASGI middleware.

    Args:
        app: The application.
        settings: Limits.
        metrics: What to count in.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._held = _Held(_ALL_BODIES * settings.max_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        self._metrics.accepted.add()
        body = _Body(receive, self._settings, self._held)
        answer = _Answer(send, body)
        try:
            self._check(scope, body)
            await self._app(scope, body, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if not answer.code:
                await answer.refuse(Refusal(500, "Something unexpected went wrong; the server's log says what."))
        finally:
            body.release()
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.add(route, str(answer.code or 499))
            self._metrics.seconds.see(time.perf_counter() - began, route)

    def _check(self, scope: Scope, body: "_Body") -> None:
        """Refuse requests that another site sends through a visitor's browser, and announced bodies too large."""
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self._settings.is_local and not _is_local(host):
            raise Refusal(421, "This server answers as localhost only; use that in the address.")
        origin = headers.get(b"origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise Refusal(403, "Requests from pages of other sites are refused; use this server's own page.")
        announced = headers.get(b"content-length", "0")
        if announced.isdigit() and int(announced) > self._settings.max_bytes:
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


class _Held:
    """Bytes of bodies that all requests hold together."""

    def __init__(self, most: int) -> None:
        self.most, self.now = most, 0


class _Body:
    """Receives a body within its limits."""

    def __init__(self, receive: Receive, settings: Settings, held: _Held) -> None:
        self._receive, self._settings, self._held = receive, settings, held
        self.complete = False
        self.size = self._kept = 0
        self._until: float | None = None

    async def __call__(self) -> Message:
        if self.complete:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._settings.receive_timeout
        try:
            message = await asyncio.wait_for(self._receive(), max(self._until - now, 0.0))
        except TimeoutError:
            raise Refusal(
                408, f"The request did not arrive within {self._settings.receive_timeout:g} s; send it faster."
            ) from None
        n = self._took(message)
        self._held.now += n
        self._kept += n
        if self.size > self._settings.max_bytes:
            raise self.too_large()
        if self._held.now > self._held.most:
            raise Refusal(503, "Other requests are arriving; try again in a moment.")
        return message

    def too_large(self) -> Refusal:
        limit = f"{self._settings.max_mb:g} MB"
        return Refusal(413, f"A request may have {limit}; send fewer files, or cut out the lenses.")

    async def rest(self) -> None:
        """Read what is left and forget it, for a while."""
        most = self.size + _REST * self._settings.max_bytes
        try:
            async with asyncio.timeout(_REST_SECONDS):
                while not self.complete and self.size < most:
                    self._took(await self._receive())
        except TimeoutError:
            pass

    def release(self) -> None:
        self._held.now -= self._kept
        self._kept = 0

    def _took(self, message: Message) -> int:
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        n = len(message.get("body", b""))
        self.size += n
        return n


class _Answer:
    """Sends an answer with the headers that all have."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body = send, body
        self.code = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.code = message["status"]
            if self.code >= 400:
                await self._body.rest()
            there = {name for name, _ in message.get("headers", [])}
            more = {name: value for name, value in HEADERS.items() if name.encode() not in there}
            if not self._body.complete and self.code >= 400:
                more["connection"] = "close"
            message = {**message, "headers": [*message.get("headers", []), *_encoded(more.items())]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        headers = {"content-type": "application/json", "content-length": str(len(refusal.body)), **refusal.headers}
        start = {"type": "http.response.start", "status": refusal.code, "headers": _encoded(headers.items())}
        await self(start)
        await self({"type": "http.response.body", "body": refusal.body})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
