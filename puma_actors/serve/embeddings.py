"""`/v1/embeddings`."""

import base64
from functools import partial
from typing import Any

import anyio
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.programs.head_layers import columns_of
from protocols.base.ring import Floats
from puma_actors.api.life import Cluster
from puma_actors.api.pipelines import TextPipeline
from puma_actors.api.usage import Usage
from puma_actors.serve.answers import usage_of
from puma_actors.serve.asked import EmbeddingsAsked, read
from puma_actors.serve.errors import BAD, ApiError
from puma_actors.serve.facts import Models
from puma_actors.serve.streams import Gone, unless_gone
from puma_actors.serve.turns.places import check_plan

_TASK = "sentence-embedding"


async def embeddings(request: Request, models: Models) -> Response:
    """`POST /v1/embeddings`. A text that is too long is refused, never cut."""
    asked = read(EmbeddingsAsked, await request.body())
    texts, model = asked.texts(), models.find(asked.model)
    pipe = TextPipeline(_TASK, model.cluster())  # long texts take seconds to read
    await anyio.to_thread.run_sync(partial(pipe.check, texts, truncation=False))
    size = columns_of(model.cluster().config, "mean")
    if asked.dimensions not in (None, size):
        raise ApiError(
            BAD, f"dimensions: this model's vectors have {size} entries", param="dimensions"
        )
    plan, counted = model.cluster().plan.digest(), models.meter.came(model.name)

    async def work(cluster: Cluster) -> tuple[Floats, Usage]:
        counted.called()
        check_plan(cluster, plan)
        pipe = TextPipeline(_TASK, cluster)
        with counted.exchanging(cluster):
            return await pipe(texts, truncation=False), pipe.usage

    async def answer() -> tuple[Floats, Usage]:
        with counted.watching():
            return await model.compute(model.queue(), work)

    try:
        vectors, usage = await unless_gone(request.receive, answer)
    except Gone:
        return Response(status_code=499)
    counted.cost(usage)
    counted.answered("stop")
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
