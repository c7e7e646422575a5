"""What the gateway says of itself: its models, and who takes part in computing them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from protocols.base.shares import COMPUTING
from puma_actors.api.life import Cluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.serve.errors import UNKNOWN, ApiError
from puma_actors.serve.served import Served

_PUBLIC = (
    "the architecture of the model and the exponents in its plan",
    "the number of tokens of every prompt and answer, and when each step was taken",
    "the settings of a request, such as its comparison tree and its number of lanes",
)
"""What the parties learn of every request."""
_PRIVATE = ("prompts", "answers", "probabilities of tokens", "how tokens are chosen")


class Models:
    """The models of a gateway, by name."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served

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
        """`GET /ready`: 200 if every model can be computed now, otherwise 503."""
        ready = all(served.ready for served in self.served.values())
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)


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
        "waiting": served.waiting,
        "reveal": cluster.settings.reveal,
        "parties": _parties(cluster),
    }


def _parties(cluster: Cluster) -> list[dict[str, str]]:
    """Who computes: roles, addresses, and the names and certificates that were proven."""
    if not isinstance(cluster, RemoteCluster):
        return [{"role": str(role), "address": "in this process"} for role in COMPUTING]
    found = []
    for role, (address, identity) in cluster.parties.items():
        proven = {} if identity is None else asdict(identity)
        found.append(
            {"role": str(role), "address": address, **{k: str(v) for k, v in proven.items()}}
        )
    return found
