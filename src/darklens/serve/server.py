"""Runs the application with uvicorn; on SIGTERM or Ctrl-C the server answers the accepted requests, then ends."""

import asyncio
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from darklens.errors import ConfigError
from darklens.serve.limits import Settings
from darklens.serve.service import Service

HEADERS_TIMEOUT = 10.0  # s, from opening a connection to the headers of its first request
UNREAD_TIMEOUT = 30.0  # s, in which a client must read some of a response
_SHUTDOWN_MARGIN = 10  # s, added to the time limit of requests when the server stops


class _Server(uvicorn.Server):
    """Prints its address when it listens, and rejects new requests once it is stopping."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            host = f"[{host}]" if ":" in host else host  # an IPv6 address
            print(
                f"Serving {', '.join(self._service.names)} at http://{host}:{port}/ (press Ctrl-C to stop)", flush=True
            )

    async def on_tick(self, counter: int) -> bool:
        return self._service.failure is not None or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.admission.is_open = False
        super().handle_exit(sig, frame)


class _Protocol(H11Protocol):
    """Closes connections that send no request or do not read the response; uvicorn would keep them open forever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn declares it so
        super().connection_made(transport)
        self.loop.call_later(HEADERS_TIMEOUT, self._close_if_silent)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._abort_if_unread(None)

    def _abort_if_unread(self, before: int | None) -> None:
        """Close the connection if the client has read nothing since `before` bytes were unread; else check later."""
        unread = self.transport.get_write_buffer_size()
        if before is not None and unread >= before > 0:
            self.transport.abort()
        elif unread:
            self.loop.call_later(UNREAD_TIMEOUT, self._abort_if_unread, unread)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def create_server(app: FastAPI, settings: Settings, port: int) -> uvicorn.Server:
    """Return a server that is not running yet.

    Args:
        app: Application that `create_app` made.
        settings: The settings of that application.
        port: Port; 0 chooses a free one.
    """
    longest = max(settings.timeout, settings.search_timeout)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=_Protocol,
        timeout_graceful_shutdown=int(longest + settings.receive_timeout) + _SHUTDOWN_MARGIN,
    )
    return _Server(config, app.state.service)


def require_address(host: str, port: int) -> None:
    """Check that a server can listen at an address, before models are loaded.

    Raises:
        ConfigError: If it cannot; one sentence says why.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ConfigError(
            f"The server cannot listen at {host}, port {port} ({reason}); change --host or --port."
        ) from None


def run(app: FastAPI, settings: Settings, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer the accepted requests. Arguments as for `create_server`."""
    # After it has stopped, uvicorn raises the signal again, which would make an orderly stop look like a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    create_server(app, settings, port).run()
    service: Service = app.state.service
    if service.failure is not None:
        raise service.failure
    metrics = service.metrics
    accepted, answered = (int(counter.total()) for counter in (metrics.accepted, metrics.requests))
    print(f"Stopped: {answered} of {accepted} accepted requests answered.", file=sys.stderr)
