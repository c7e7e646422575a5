"""Responses that end when the client goes away, and server-sent events."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puma_actors.base.concurrency import unwrap
from puma_actors.base.logs import log
from puma_actors.serve.errors import told

T = TypeVar("T")
Emit: TypeAlias = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Sends one event."""
KEEP_ALIVE = 2.0
"""Seconds between comment lines while nothing else is sent."""


class Gone(Exception):  # noqa: N818 - not an error of ours
    """The client has closed the connection."""


async def unless_gone(receive: Receive, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is cancelled when the client closes the connection.

    Raises:
        Gone: it did. Otherwise what `work` raises.
    """
    found: list[T] = []

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(leave)
            found.append(await work())
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        root = unwrap(errors)
        raise root from root.__cause__
    if not found:
        raise Gone
    return found[0]


class EventStream(Response):
    """A stream of server-sent events. The headers are sent at once; comment lines keep the
    connection alive while there is nothing to say. An error in the middle is an event of its own.

    Args:
        produce: sends the events, and returns when there are no more.
        status: what the comment lines say: the state of the request.
        headers: further headers.
    """

    def __init__(
        self,
        produce: Callable[[Emit], Awaitable[None]],
        status: Callable[[], str],
        headers: Mapping[str, str],
    ) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no", **headers},
        )
        del self.headers["content-length"]
        self._produce = produce
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        line = anyio.Lock()

        async def write(text: str) -> None:
            async with line:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

        async def emit(event: Mapping[str, Any]) -> None:
            await write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")

        async def keep_alive() -> None:
            while True:
                await write(f": keep-alive {self._status()}\n\n")
                await anyio.sleep(KEEP_ALIVE)

        async def events() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(keep_alive)
                await self._produce(emit)
                group.cancel_scope.cancel()

        try:
            await unless_gone(receive, events)
            await write("data: [DONE]\n\n")
        except Gone:
            return
        except Exception as error:
            log.warning("answer failed", kind=type(error).__name__)
            await emit(told(error).body())
        await send({"type": "http.response.body", "body": b"", "more_body": False})
