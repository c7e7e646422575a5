"""A gateway in this process, and a client of it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from openai import AsyncOpenAI

from protocols.base.lane import Settings
from puma_actors.api.life import Cluster
from puma_actors.api.local import LocalCluster
from puma_actors.serve.facts import Models
from puma_actors.serve.served import Served
from puma_actors.serve.server import listen, serve

KEY = "puma-a-key-for-the-tests"
NAME = "tiny"


@dataclass
class Gateway:
    """Where it is, and what it serves."""

    port: int
    models: Mapping[str, Served]
    clients: list[AsyncOpenAI] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = KEY) -> AsyncOpenAI:
        """A client that never tries again by itself; closed with the gateway."""
        made = AsyncOpenAI(base_url=f"{self.base}/v1", api_key=key, max_retries=0)
        self.clients.append(made)
        return made


Opener = Callable[[], Awaitable[Cluster]]


@asynccontextmanager
async def gateway(
    *folders: Path,
    settings: Settings | None = None,
    remote: Mapping[str, Opener] | None = None,
    at_once: int = 1,
) -> AsyncIterator[Gateway]:
    """A running gateway for models in folders, the first of which is called `NAME`, and for others
    that `remote` opens.
    """
    openers = dict(remote or {})
    for number, folder in enumerate(folders):
        openers[folder.name if number else NAME] = _local(folder, settings)
    models = {name: Served(name, opener, at_once) for name, opener in openers.items()}
    started = anyio.Event()

    async def ready(base: str) -> None:
        started.set()

    with listen(0) as socket_:
        async with anyio.create_task_group() as group:

            async def run() -> None:
                await serve(Models(models), KEY, socket_, ready=ready)

            group.start_soon(run)
            await started.wait()
            running = Gateway(socket_.getsockname()[1], models)
            try:
                yield running
            finally:
                for client in running.clients:
                    await client.close()
            group.cancel_scope.cancel()


def _local(folder: Path, settings: Settings | None) -> Opener:
    async def opener() -> Cluster:
        return LocalCluster.from_pretrained(folder, settings=settings)

    return opener
