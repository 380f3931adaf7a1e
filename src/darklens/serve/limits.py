"""What the server accepts: its settings, and the counts of requests and images in flight."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field

from darklens.config import Frozen
from darklens.serve.responses import RequestError

MEGABYTE = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(Frozen):
    """Limits of a server; the command line sets most of them."""

    host: str = Field(default="127.0.0.1", description="address to listen on")
    token: str | None = Field(default=None, description="bearer token that /v1 requires")
    max_mb: float = Field(default=64.0, gt=0, le=1000, description="largest request body, MB")
    max_files: int = Field(default=64, ge=1, le=1000, description="files per request")
    max_pixels: int = Field(default=4_000_000, ge=1, description="pixels per image")
    timeout: float = Field(default=60.0, gt=0, description="time to answer a request, s")
    receive_timeout: float = Field(default=20.0, gt=0, description="time to receive a request, s")
    read_timeout: float = Field(default=20.0, gt=0, description="time to read a file, s")
    queue: int = Field(default=256, ge=1, description="images waiting or being classified")
    batch: int = Field(default=16, ge=1, le=256, description="images per batch")
    per_client: int = Field(default=16, ge=1, description="simultaneous requests per client address")
    search_timeout: float = Field(default=120.0, gt=0, description="time to answer a search, s")
    searches: int = Field(default=4, ge=1, description="searches waiting or running")
    max_search_pixels: int = Field(default=40_000, ge=1, description="pixels of an image to search")
    readers: int = Field(default=2, ge=1, le=64, description="processes that read files")

    @property
    def max_bytes(self) -> int:
        """The largest request body, bytes."""
        return int(self.max_mb * MEGABYTE)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK


class Admission:
    """Counts requests and images in flight and rejects those beyond the limits.

    Only the thread of the event loop may use it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._requests: Counter[str] = Counter()
        self.n_images = self.n_searches = 0
        self.is_open = True

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Count a request of a client address while it is processed.

        Raises:
            RequestError: 503 if the server is stopping or has too many requests, 429 if the client has too many.
        """
        if not self.is_open:
            raise RequestError(503, "The server is stopping; try again later.", reason="stopping")
        if self._requests[client] >= self._settings.per_client:
            raise RequestError(
                429, f"You have {self._settings.per_client} requests in flight already; wait for one of them to finish."
            )
        if self._requests.total() >= self._settings.queue:
            raise RequestError(503, "Too many requests are in flight; try again in a moment.")
        self._requests[client] += 1
        try:
            yield
        finally:
            self._requests[client] -= 1
            if not self._requests[client]:
                del self._requests[client]

    @contextmanager
    def images(self, n: int) -> Iterator[None]:
        """Count n images while they wait or are classified.

        Raises:
            RequestError: 503 if the queue has no room for them.
        """
        if self.n_images + n > self._settings.queue:
            raise RequestError(
                503, f"The queue already holds {self.n_images} images; try again in a moment, or send fewer."
            )
        self.n_images += n
        try:
            yield
        finally:
            self.n_images -= n

    @contextmanager
    def search(self) -> Iterator[None]:
        """Count a search while it waits or runs.

        Raises:
            RequestError: 503 if there are too many.
        """
        if self.n_searches >= self._settings.searches:
            raise RequestError(503, f"{self.n_searches} searches are waiting or running; try again in a minute.")
        self.n_searches += 1
        try:
            yield
        finally:
            self.n_searches -= 1

    @property
    def is_full(self) -> bool:
        """Whether the queue has no room for another image."""
        return self.n_images >= self._settings.queue
