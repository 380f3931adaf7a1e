"""Who is let in: so many requests of one client, so many images at a time; the others are told to come again."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from darklens.serve.refusal import Refusal
from darklens.serve.settings import Settings


class Gate:
    """Counts requests and images in flight; used by the event loop's thread alone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: Counter[str] = Counter()
        self.images = 0
        self.is_open = True

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Let a request in.

        Raises:
            Refusal: 503 if the server stops or has too many requests, 429 if the client has.
        """
        if not self.is_open:
            raise Refusal(503, "The server is stopping; try again later.", reason="stopping")
        if self._clients[client] >= self._settings.per_client:
            raise Refusal(
                429, f"More than {self._settings.per_client} requests of yours are in flight; wait for one to end."
            )
        if self._clients.total() >= self._settings.queue:
            raise Refusal(503, "Too many requests are in flight; try again in a moment.")
        self._clients[client] += 1
        try:
            yield
        finally:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    @contextmanager
    def queued(self, n: int) -> Iterator[None]:
        """Let n images in.

        Raises:
            Refusal: 503 if there is no room for them.
        """
        if self.images + n > self._settings.queue:
            raise Refusal(503, f"{self.images} images are waiting; try again in a moment, or send fewer.")
        self.images += n
        try:
            yield
        finally:
            self.images -= n

    @property
    def is_full(self) -> bool:
        """Whether no further image is let in."""
        return self.images >= self._settings.queue
