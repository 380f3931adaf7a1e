"""Why a request as a whole was refused: a status code, a reason for programs, one sentence for people."""

from pydantic import BaseModel, Field

REASONS = {
    400: "bad_request",
    401: "unauthorized",
    403: "foreign_origin",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_media_type",
    421: "unknown_host",
    422: "invalid",
    429: "too_many_requests",
    500: "unexpected",
    503: "busy",
}
RETRY_AFTER = 1  # seconds


class Problem(BaseModel):
    """What was wrong with a request."""

    code: int = Field(description="HTTP status code")
    reason: str = Field(description="one word, for programs")
    message: str = Field(description="one sentence: what is wrong, and what to do")
    field: str | None = Field(default=None, description="name of the field that is wrong")


class ErrorAnswer(BaseModel):
    """Body of every answer that is no success."""

    error: Problem


class Refusal(Exception):
    """Ends a request.

    Args:
        code: HTTP status code.
        message: One sentence: what is wrong, and what to do.
        reason: One word, for programs; by default that of the code.
        field: Name of the field that is wrong.
    """

    def __init__(self, code: int, message: str, *, reason: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(code=code, reason=reason or REASONS[code], message=message, field=field)

    @property
    def code(self) -> int:
        """HTTP status code."""
        return self.problem.code

    @property
    def headers(self) -> dict[str, str]:
        """What the client has to be told beside the body."""
        if self.code in (429, 503):
            return {"Retry-After": str(RETRY_AFTER)}
        if self.code == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {}

    @property
    def body(self) -> bytes:
        """The answer as JSON."""
        return ErrorAnswer(error=self.problem).model_dump_json(exclude_none=True).encode()
