"""`/v1/embeddings`."""

import base64
from typing import Any

import anyio
import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.programs.head_layers import columns_of
from protocols.base.cost import Cost
from protocols.base.ring import Floats
from puma_actors.api.life import Cluster
from puma_actors.api.pipelines import TextPipeline
from puma_actors.api.usage import Usage
from puma_actors.serve.answers import usage_of
from puma_actors.serve.asked import EmbeddingsAsked, read
from puma_actors.serve.errors import BAD, ApiError
from puma_actors.serve.facts import Models
from puma_actors.serve.pace import ROUGH, check_patience, predicted, predicted_headers
from puma_actors.serve.streams import Gone, unless_gone
from puma_actors.serve.turns.places import check_plan

_TASK = "sentence-embedding"


async def embeddings(request: Request, models: Models) -> Response:
    """`POST /v1/embeddings`. A text that is too long is refused, never cut."""
    asked = read(EmbeddingsAsked, await request.body())
    texts, model = asked.texts(), models.find(asked.model)
    cost, seconds = await anyio.to_thread.run_sync(_predicted, model.cluster(), texts)
    check_patience(request, seconds / ROUGH)
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
    found = {"object": "list", "data": data, "model": model.name, "usage": counts}
    return JSONResponse(found, headers=predicted_headers(cost, seconds or None))


def _predicted(cluster: Cluster, texts: list[str]) -> tuple[Cost, float]:
    """What the texts cost, and roughly how many seconds. It takes a second for long texts.

    Raises:
        ConfigError: a text is too long.
    """
    cost, seconds = Cost(), 0.0
    for batch in TextPipeline(_TASK, cluster).shapes(texts, truncation=False):
        first, _, rough = predicted(cluster, batch, 1)
        cost, seconds = cost + first, seconds + rough
    return cost, seconds


def _shown(vector: Floats, encoding: str | None) -> Any:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return [float(value) for value in vector.astype(np.float32)]
