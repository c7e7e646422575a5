"""What every request must pass before anything reads it.

A web page that the user happens to visit can send requests to this machine, and a name that it
controls can point here (DNS rebinding). So the address in `Host` must be the gateway's own, a page
must be the gateway's own, and every path except the page and the health check needs the key, which
no other page can know.
"""

import hmac
from collections.abc import Collection
from http import HTTPStatus

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puma_actors.base.logs import log
from puma_actors.serve.counting.meter import Meter, reason_of
from puma_actors.serve.errors import DENIED, ApiError, told

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
OPEN_FOLDER = "/ready/"
"""Without a key: they say nothing about any conversation."""
BODY_BYTES = 4 << 20
BODY_SECONDS = 30.0
"""The largest body of a request, and how long it may take to arrive."""
_ALWAYS = {
    b"cache-control": b"no-store",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
}


class Guard:
    """ASGI middleware; see the module docstring.

    Args:
        hosts: exact values of `Host`, with the port.
        key: what `Authorization: Bearer` must show.
        meter: counts what is refused.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str], key: str, meter: Meter | None = None
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(f"http://{host}" for host in self._hosts)
        self._key = key.encode()
        self._meter = meter or Meter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket: nothing here takes one
            await send({"type": "websocket.close", "code": 1008})
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                names = {name for name, _ in message["headers"]}
                added = [item for item in _ALWAYS.items() if item[0] not in names]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        try:
            self._check(scope)
            body = await _body(scope, receive)
            await self._app(scope, _again(body, receive), sending)
        except Exception as error:
            if not isinstance(error, ApiError):
                log.error("request failed", kind=type(error).__name__)
            if started:
                raise
            self._meter.refused(reason_of(error))
            await told(error).response()(scope, receive, sending)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise ApiError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"Host: not this gateway's address: use http://{min(self._hosts)}",
            )
        origins = headers.getlist("origin")
        elsewhere = any(origin.lower() not in self._origins for origin in origins)
        if elsewhere or headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            raise ApiError(
                HTTPStatus.FORBIDDEN, "Origin: requests from other web pages are refused"
            )
        if scope["path"] not in OPEN_PATHS and not scope["path"].startswith(OPEN_FOLDER):
            self._check_key(headers.getlist("authorization"))
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: send application/json"
                )

    def _check_key(self, given: list[str]) -> None:
        scheme, _, key = (given[0] if len(given) == 1 else "").partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self._key)
        if not same or scheme.lower() != "bearer":
            raise ApiError(
                DENIED,
                "no valid key: send `Authorization: Bearer KEY`; `puma serve` says where it is",
                code="invalid_api_key",
            )


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The whole body, within limits of size and time."""
    if scope["method"] not in {"POST", "PUT", "PATCH"}:
        return b""
    length = Headers(scope=scope).get("content-length", "0")
    if not length.isdecimal() or int(length) > BODY_BYTES:
        raise _too_large()
    parts: list[bytes] = []
    size, more = 0, True
    with anyio.move_on_after(BODY_SECONDS) as scope_of_time:
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise ApiError(400, "the request broke off")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > BODY_BYTES:
                raise _too_large()
            more = message.get("more_body", False)
    if scope_of_time.cancelled_caught:
        raise ApiError(
            HTTPStatus.REQUEST_TIMEOUT, f"the request took longer than {BODY_SECONDS:.0f} s to send"
        )
    return b"".join(parts)


def _too_large() -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the request is larger than {BODY_BYTES:,} bytes"
    )


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body, and then what follows it: that the client has gone."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
