"""Three party servers in this process, each with its own configuration and store."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup
from ports import free_ports
from waiting import HANG, until

from models.checkpoints.weights import open_checkpoint
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import COMPUTING, Role
from puma_actors.api.remote import upload_model
from puma_actors.hosts.admission import ModelEntry
from puma_actors.hosts.caller import survey_models
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.hosts.server import PartyServer


def write_config(
    path: Path,
    addresses: dict[Role, str],
    certificates: Path,
    extra: str = "",
    network: str = "",
    first: str = "",
) -> Path:
    """A cluster.toml. `extra`: more tables. `first`: more keys outside of tables."""
    parties = "".join(f'{role} = "{address}"\n' for role, address in addresses.items())
    path.write_text(
        f'certificates = "{certificates}"\nstore = "{path.stem}-store"\n'
        f'network = "{network}"\n{first}'
        f"[parties]\n{parties}"
        f"[timeouts]\nretry = {HANG}\nsilence = {HANG}\nhandshake = {HANG}\n"
        f"opening = {HANG}\ngrace = {HANG}\n{extra}"
    )
    return path


def addresses_for(scheme: str, folder: Path) -> dict[Role, str]:
    if scheme == "unix":
        return {role: f"unix://{folder}/{role}" for role in COMPUTING}
    ports = free_ports(len(COMPUTING))
    return {
        role: f"{scheme}://127.0.0.1:{port}" for role, port in zip(COMPUTING, ports, strict=True)
    }


async def list_models(
    config: ClusterConfig, role: Role = Role.OWNER
) -> dict[str, dict[Role, ModelEntry]]:
    """By name, what each party holds of a model. Raises what one says that does not answer."""
    listing = await survey_models(config, role)
    for error in listing.silent.values():
        raise error
    return listing.models


@dataclass
class Hosts:
    """A running cluster; parties can be stopped and started."""

    folder: Path
    addresses: dict[Role, str]
    certificates: Path
    group: TaskGroup
    extra: str = ""
    network: str = ""
    servers: dict[Role, PartyServer] = field(default_factory=dict)
    scopes: dict[Role, anyio.CancelScope] = field(default_factory=dict)

    def config(self, who: str, extra: str | None = None, first: str = "") -> ClusterConfig:
        path = self.folder / f"{who}.toml"
        extra = self.extra if extra is None else extra
        write_config(path, self.addresses, self.certificates, extra, self.network, first)
        return load_config(path, environ={})

    @property
    def client(self) -> ClusterConfig:
        return self.config("client")

    async def start(self, role: Role, extra: str | None = None, first: str = "") -> PartyServer:
        server = PartyServer(self.config(str(role), extra, first), role)
        scope = anyio.CancelScope()
        ended = anyio.Event()

        async def run() -> None:
            try:
                with scope:
                    await server.run()
            finally:
                ended.set()

        self.group.start_soon(run)
        await server.listening.wait()
        self.servers[role], self.scopes[role] = server, scope
        server.ended = ended  # type: ignore[attr-defined]
        return server

    async def kill(self, role: Role) -> None:
        self.scopes[role].cancel()
        await self.servers[role].ended.wait()  # type: ignore[attr-defined]

    async def linked(self) -> None:
        """Wait until every party has its links."""
        await until(
            lambda: all(
                peer in server.links._links
                for server in self.servers.values()
                for peer in server.links.peers
            )
        )

    async def upload(self, model: Path, name: str = "tiny", **options: Any) -> None:
        """Upload, and wait until no party is busy with it: they let go of their places and memory
        a moment after the owner has left.
        """
        with open_checkpoint(model) as checkpoint:
            tokenizer = None
            if (model / "tokenizer.json").exists():
                tokenizer = Tokenizer.load(model)
            await upload_model(self.client, checkpoint, name, tokenizer=tokenizer, **options)
        await until(lambda: not any(name in s._uploads.names for s in self.servers.values()))


@asynccontextmanager
async def hosts(
    folder: Path,
    certificates: Path,
    scheme: str = "tls",
    extra: str = "",
    network: str = "",
) -> AsyncIterator[Hosts]:
    """All three parties, linked. They are stopped at the end."""
    async with anyio.create_task_group() as group:
        made = Hosts(folder, addresses_for(scheme, folder), certificates, group, extra, network)
        for role in COMPUTING:
            await made.start(role)
        await made.linked()
        yield made
        group.cancel_scope.cancel()


async def quiet(cluster: Hosts, sessions: int = 0) -> None:
    """Wait until every party has this many sessions."""
    await until(lambda: all(s.sessions == sessions for s in cluster.servers.values()))
