"""Errors as OpenAI's clients read them: a status, and a body {"error": {...}}."""

from typing import Any

from starlette.responses import JSONResponse, Response

from protocols.errors import (
    Busy,
    ConfigError,
    ModelError,
    PeerFailed,
    PumaError,
    RangeError,
    RemoteProtocolError,
    TransportError,
)
from puma_actors.base.texts import printable

BAD, DENIED, UNKNOWN, LOST = 400, 401, 404, 502
BUSY_SECONDS = 5
"""When to try again if the gateway is busy."""


class ApiError(Exception):
    """What a client did wrong, or what went wrong for it.

    Args:
        message: for people; it names the value and the remedy.
        param: the field of the request that it is about. code: a word for programs.
        retry: whether the same request may succeed in a while.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry = retry

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == DENIED:
            kind = "authentication_error"
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        """The whole response. Clients that try again by themselves are told where it is no use."""
        headers = {"x-should-retry": "true" if self.retry else "false"}
        if self.retry:
            headers["retry-after"] = str(BUSY_SECONDS)
        if self.status == DENIED:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def told(error: Exception) -> ApiError:
    """What a client is told of an error. Of a bug, nothing but that it happened."""
    if isinstance(error, ApiError):
        return error
    text = printable(str(error))
    if isinstance(error, Busy):
        return ApiError(503, text, code="busy", retry=True)
    if isinstance(error, PeerFailed | TransportError | RemoteProtocolError):
        return ApiError(LOST, f"a computing party is lost: {text}", code="party_lost", retry=True)
    if isinstance(error, ConfigError | ModelError | RangeError):
        return ApiError(BAD, text)
    if isinstance(error, PumaError):
        return ApiError(500, text)
    return ApiError(500, "internal error: see the gateway's log")
