"""The chat page: one static file that loads nothing else and talks to this gateway only."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@cache
def content() -> str:
    """The page."""
    return files(__package__).joinpath("page.html").read_text(encoding="utf-8")


@cache
def policy() -> str:
    """Its Content-Security-Policy: only its own script and style, named by their digests, and
    requests to this gateway.
    """
    digests: dict[str, list[str]] = {"script": [], "style": []}
    for kind, text in _INLINE.findall(content()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        digests[kind].append(f"'sha256-{digest}'")
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(digests['script'])}",
            f"style-src {' '.join(digests['style'])}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


async def page(request: Request) -> Response:
    """`GET /`. A query is refused: no link may carry a prompt into the page."""
    if request.url.query:
        return Response(status_code=404)
    return HTMLResponse(content(), headers={"content-security-policy": policy()})
