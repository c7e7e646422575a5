"""What the gateway says of itself: its models, and who takes part in computing them."""

import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocols.base.shares import COMPUTING
from puma_actors.api.life import Cluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.serve.counting.meter import Meter
from puma_actors.serve.errors import UNKNOWN, ApiError
from puma_actors.serve.served import Served

_PUBLIC = (
    "the architecture of the model and the exponents in its plan",
    "the number of tokens of every prompt and answer, and when each step was taken",
    "the settings of a request, such as its comparison tree and its number of lanes",
)
"""What the parties learn of every request."""
_DAY = 86400.0
_PRIVATE = ("prompts", "answers", "probabilities of tokens", "how tokens are chosen")


class Models:
    """The models of a gateway, by name.

    Attributes:
        meter: counts their requests.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served
        self.meter = _meter(served)

    def find(self, name: str) -> Served:
        """A model by its name.

        Raises:
            ApiError: there is none.
        """
        found = self.served.get(name)
        if found is None:
            known = ", ".join(self.served)
            raise ApiError(
                UNKNOWN,
                f"there is no model {name[:80]!r}: this gateway has {known}",
                param="model",
                code="model_not_found",
            )
        return found

    async def all(self, request: Request) -> Response:
        """`GET /v1/models`."""
        return JSONResponse({"object": "list", "data": [_entry(m) for m in self.served.values()]})

    async def one(self, request: Request) -> Response:
        """`GET /v1/models/{name}`."""
        return JSONResponse(_entry(self.find(request.path_params["name"])))

    async def session(self, request: Request) -> Response:
        """`GET /v1/puma/session`: who takes part, and what each can see."""
        models = [
            _facts(served, served.cluster()) if served.ready else _absent(served)
            for served in self.served.values()
        ]
        return JSONResponse({"models": models, "public": _PUBLIC, "private": _PRIVATE})

    async def health(self, request: Request) -> Response:
        """`GET /health`: the gateway is alive."""
        return JSONResponse({"status": "ok"})

    async def readiness(self, request: Request) -> Response:
        """`GET /ready`: 200 if every model can be computed now, otherwise 503. `GET /ready/NAME`:
        the same for one model.
        """
        wanted = request.path_params.get("name")
        chosen = [*self.served.values()] if wanted is None else [self.find(wanted)]
        models = {served.name: served.ready for served in chosen}
        ready = all(models.values())
        told = {"ready": ready, "models": models}
        return JSONResponse(told, status_code=200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: numbers for Prometheus."""
        text, kind = self.meter.page()
        return Response(text, media_type=kind)


def _meter(served: Mapping[str, Served]) -> Meter:
    try:
        from puma_actors.serve.counting.prometheus import Prometheus
    except ImportError:
        return Meter()
    return Prometheus(served, lambda each: days_left(each.cluster()) if each.ready else {})


def days_left(cluster: Cluster) -> dict[str, float]:
    """Days until certificates expire, by holder; empty without certificates."""
    if not isinstance(cluster, RemoteCluster):
        return {}
    return {who: (until - time.time()) / _DAY for who, until in cluster.expires.items()}


def _entry(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "puma"}


def _absent(served: Served) -> dict[str, Any]:
    return {"id": served.name, "ready": False, "problem": served.problem}


def _facts(served: Served, cluster: Cluster) -> dict[str, Any]:
    plan = cluster.plan
    return {
        "id": served.name,
        "ready": True,
        "plan": plan.digest(),
        "weights": plan.weights,
        "head": plan.config.head,
        "most_tokens": cluster.most_new_tokens(1),
        "running": served.running,
        "waiting": served.waiting,
        "at_once": served.at_once,
        "sessions": served.sessions,
        "reveal": cluster.settings.reveal,
        "parties": _parties(cluster),
        "certificate_days_left": {who: round(d, 1) for who, d in days_left(cluster).items()},
    }


def _parties(cluster: Cluster) -> list[dict[str, str]]:
    """Who computes: roles, addresses, and the names and certificates that were proven."""
    if not isinstance(cluster, RemoteCluster):
        return [{"role": str(role), "address": "in this process"} for role in COMPUTING]
    found = []
    for role, (address, identity) in cluster.parties.items():
        entry = {"role": str(role), "address": address}
        if identity is not None:
            entry.update(name=identity.name, certificate=identity.certificate)
        found.append(entry)
    return found
