"""Running the application: a stop that was asked for finishes what was accepted."""

import asyncio
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from darklens.serve.service import Service
from darklens.serve.settings import Settings

HEAD_SECONDS = 10.0  # in which the head of a connection's first request has to arrive
_LATER = 10  # seconds beyond the time limit of requests that a stop waits for them


class _Server(uvicorn.Server):
    """Says when it listens, and lets nobody in once it was told to stop."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"Serving {', '.join(self._service.names)} at http://{shown}:{port}/ (Ctrl-C stops it)", flush=True)

    async def on_tick(self, counter: int) -> bool:
        return self._service.failure is not None or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.gate.is_open = False
        super().handle_exit(sig, frame)


class _Protocol(H11Protocol):
    """Closes connections that are opened and then ask for nothing; uvicorn would hold them for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn has it so
        super().connection_made(transport)
        self.loop.call_later(HEAD_SECONDS, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def server_of(app: FastAPI, settings: Settings, port: int) -> uvicorn.Server:
    """Return a server that is not running yet.

    Args:
        app: From `create_app`.
        settings: Its settings.
        port: 0: any that is free.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=_Protocol,
        timeout_graceful_shutdown=int(settings.timeout + settings.receive_timeout) + _LATER,
    )
    return _Server(config, app.state.service)


def run(app: FastAPI, settings: Settings, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish the requests that were accepted. Arguments as for `server_of`."""
    # uvicorn raises the signal again when it has stopped, which would make a stop that was asked for look like a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server_of(app, settings, port).run()
    service: Service = app.state.service
    if service.failure is not None:
        raise service.failure
    metrics = service.metrics
    accepted, answered = (int(counter.total()) for counter in (metrics.accepted, metrics.requests))
    print(f"Stopped: {answered} of {accepted} accepted requests answered.", file=sys.stderr)
