"""What a server accepts and how long it waits."""

from pydantic import Field

from darklens.config import Frozen

MEGABYTE = 1_000_000
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(Frozen):
    """Limits of a server; each can be set on the command line."""

    host: str = Field(default="127.0.0.1", description="address it listens on")
    token: str | None = Field(default=None, description="bearer token that /v1 asks for")
    max_mb: float = Field(default=64.0, gt=0, le=1000, description="of a request")
    max_files: int = Field(default=64, ge=1, le=1000, description="in a request")
    max_pixels: int = Field(default=4_000_000, ge=1, description="of an image")
    timeout: float = Field(default=60.0, gt=0, description="seconds until a request is given up")
    receive_timeout: float = Field(default=20.0, gt=0, description="seconds in which a request has to arrive")
    read_timeout: float = Field(default=20.0, gt=0, description="seconds in which a file has to be read")
    queue: int = Field(default=256, ge=1, description="images that wait or are classified")
    batch: int = Field(default=16, ge=1, le=256, description="images that are classified together, at most")
    per_client: int = Field(default=16, ge=1, description="requests of one address at a time")
    readers: int = Field(default=2, ge=1, le=64, description="processes that read files")

    @property
    def max_bytes(self) -> int:
        """The largest request body."""
        return int(self.max_mb * MEGABYTE)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in LOOPBACK
