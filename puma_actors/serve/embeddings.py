"""`/v1/embeddings`."""

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.programs.head_layers import columns_of
from protocols.base.ring import Floats
from puma_actors.api.pipelines import TextPipeline
from puma_actors.api.usage import Usage
from puma_actors.serve.answers import usage_of
from puma_actors.serve.asked import EmbeddingsAsked, read
from puma_actors.serve.errors import BAD, ApiError
from puma_actors.serve.served import Served
from puma_actors.serve.streams import Gone, unless_gone

_TASK = "sentence-embedding"


async def embeddings(request: Request, served: Callable[[str], Served]) -> Response:
    """`POST /v1/embeddings`. A text that is too long is refused, never cut."""
    asked = read(EmbeddingsAsked, await request.body())
    texts, model = asked.texts(), served(asked.model)
    TextPipeline(_TASK, model.cluster()).check(texts, truncation=False)
    size = columns_of(model.cluster().config, "mean")
    if asked.dimensions not in (None, size):
        raise ApiError(
            BAD, f"dimensions: this model's vectors have {size} entries", param="dimensions"
        )
    place = model.queue()

    async def work() -> tuple[Floats, Usage]:
        async with model.turn(place) as cluster:
            pipe = TextPipeline(_TASK, cluster)
            return await pipe(texts, truncation=False), pipe.usage

    try:
        vectors, usage = await unless_gone(request.receive, work)
    except Gone:
        return Response(status_code=499)
    finally:
        model.leave(place)
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(row, asked.encoding_format)}
        for index, row in enumerate(vectors)
    ]
    counts = usage_of(usage)
    del counts["completion_tokens"]
    return JSONResponse({"object": "list", "data": data, "model": model.name, "usage": counts})


def _shown(vector: Floats, encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector.astype(np.float32)]
