"""The gateway's paths."""

from collections.abc import Awaitable, Callable, Collection
from http import HTTPStatus
from typing import TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from protocols.errors import PumaError
from puma_actors.base.logs import log
from puma_actors.serve.completions import chat, completions
from puma_actors.serve.counting.meter import Meter, reason_of
from puma_actors.serve.embeddings import embeddings
from puma_actors.serve.errors import ApiError, told
from puma_actors.serve.facts import Models
from puma_actors.serve.guard import Guard
from puma_actors.serve.page import page

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]


def application(models: Models, hosts: Collection[str], key: str) -> ASGIApp:
    """The whole gateway.

    Args:
        hosts, key: see `Guard`.
    """

    async def on_chat(request: Request) -> Response:
        return await chat(request, models)

    async def on_completions(request: Request) -> Response:
        return await completions(request, models)

    async def on_embeddings(request: Request) -> Response:
        return await embeddings(request, models)

    endpoints: list[tuple[str, str, Endpoint]] = [
        ("GET", "/", page),
        ("GET", "/health", models.health),
        ("GET", "/ready", models.readiness),
        ("GET", "/ready/{name:path}", models.readiness),
        ("GET", "/metrics", models.metrics),
        ("GET", "/v1/models", models.all),
        ("GET", "/v1/models/{name:path}", models.one),
        ("GET", "/v1/puma/session", models.session),
        ("POST", "/v1/chat/completions", on_chat),
        ("POST", "/v1/completions", on_completions),
        ("POST", "/v1/embeddings", on_embeddings),
    ]
    meter = models.meter
    routes = [Route(path, _told(each, meter), methods=[way]) for way, path, each in endpoints]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused})
    return Guard(app, hosts, key, meter)


def _told(endpoint: Endpoint, meter: Meter) -> Endpoint:
    """An endpoint whose errors are answers. Starlette's own handler would print a traceback, and
    tracebacks can show what a request said.
    """

    async def answering(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Exception as error:
            if not isinstance(error, ApiError | PumaError):
                log.error("request failed", kind=type(error).__name__)
            meter.refused(reason_of(error))
            return told(error).response()

    return answering


async def _refused(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return ApiError(status, f"{request.method} here: {HTTPStatus(status).phrase}").response()
