"""The life of a cluster: entered once, used, left once. It is the same wherever the parties run.
`Links` covers the difference: how the client connects to them.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self

import anyio

from models.configs.architecture import ModelConfig
from models.programs.steps import RequestSettings
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import Role
from protocols.errors import ConfigError, PeerFailed, PumaError
from puma_actors.api.requests import Requests
from puma_actors.roles.actor import Actor
from puma_actors.roles.client import Client
from puma_actors.transports.delay.network import Network


class Links(Protocol):
    """Connects a client to its parties, and names the actors that run beside it in this process."""

    @property
    def actors(self) -> Sequence[Actor]:
        """The actors that run beside the client, from the time all are connected until the end."""

    @property
    def seconds(self) -> dict[str, float]:
        """How many seconds each part of the start took, by name."""

    @property
    def once(self) -> str:
        """The error message for entering a second time."""

    async def connect(self, client: Client) -> None:
        """Attach the peers of the client and of all `actors`.

        Raises:
            PumaError: it failed; the caller then calls `aclose`.
        """

    async def settle(self) -> None:
        """Wait for whatever must be finished before the first request. Called when the client can
        make requests; cancelled when an actor fails.
        """

    async def aclose(self) -> None:
        """Release everything, connected or not."""


class Cluster(Requests):
    """Accepts requests between entering and leaving. A cluster that is not entered must be closed
    with `aclose`.

    Args:
        links: the links to the parties. The other arguments are those of `Requests`.
        network: see the attribute.
        apart: as for `Requests`.

    Attributes:
        network: the network emulated between the client and the parties, if any.
        seconds: how many seconds each part of the start took, by name.

    Raises (from entering, leaving and requests): PeerFailed if a party died. Leaving raises the
        error of an actor in this process that failed.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        client: Client,
        settings: RequestSettings,
        links: Links,
        network: Network | None,
        *,
        apart: bool = False,
    ) -> None:
        super().__init__(config, tokenizer, client, settings, network, apart=apart)
        self.network = network
        self.seconds = links.seconds
        self._links = links
        self._life: _Life | None = None

    @property
    def running(self) -> bool:
        return self._life is not None and self._life.running

    async def __aenter__(self) -> Self:
        if self._life is not None:
            raise ConfigError(self._links.once)
        self._life = _Life(self.client, self._links)
        await self._life.begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._life is not None
        await self._life.end(error)

    async def wait_failed(self) -> None:
        """Wait until the running cluster can take no more requests because an actor failed."""
        if self._life is None:
            raise ConfigError("the cluster is not running: use `async with`")
        await self._life.failed.wait()

    async def aclose(self) -> None:
        """Close what was opened, if the cluster will not be entered."""
        await self._links.aclose()


class _Life:
    """All actors of this process, from their connections to their end.

    Attributes:
        running: whether the actors are connected and have not ended.
        failed: set when an actor has failed.
    """

    def __init__(self, client: Client, links: Links) -> None:
        self.running = False
        self.failed = anyio.Event()
        self._client = client
        self._links = links
        self._group = anyio.create_task_group()
        self._starting = anyio.CancelScope()
        self._leaving = anyio.CancelScope()  # without an error
        self._failures: dict[Role, Exception] = {}  # the first one first

    async def begin(self) -> None:
        """Start all actors; return when requests can be made. An error leaves nothing running."""
        try:
            await self._links.connect(self._client)
        except BaseException:
            await self._links.aclose()
            raise
        await self._group.__aenter__()
        self.running = True
        try:
            for actor in self._links.actors:
                self._group.start_soon(self._supervise, actor.role, actor.run)
            self._group.start_soon(self._supervise, Role.CLIENT, self._listen)
            await self._client.wait_ready()
            with self._starting:
                await self._links.settle()
            for failure in self._failures.values():
                raise failure
        except BaseException as error:
            await self.end(error)
            raise

    async def end(self, error: BaseException | None) -> None:
        """End all actors; if one of them failed first, raise its error.

        Args:
            error: the reason for the end, if it is an error.
        """
        self.running = False
        if error is None and not self._failures:
            with suppress(PumaError):
                await self._client.close()
            self._leaving.cancel()
        else:
            self._group.cancel_scope.cancel()
        try:
            await self._group.__aexit__(None, None, None)
        finally:
            await self._links.aclose()
        cause = self._cause()
        if cause is not None and (error is None or isinstance(error, PeerFailed)):
            raise cause

    def _cause(self) -> Exception | None:
        """The reason for the end: an actor's own failure, or else what the client heard of one."""
        for failure in self._failures.values():
            if not isinstance(failure, PeerFailed):
                return failure
        return self._failures.get(Role.CLIENT)

    async def _supervise(self, role: Role, main: Callable[[], Awaitable[None]]) -> None:
        try:
            await main()
        except Exception as error:  # the actor notifies the others; `end` raises it
            self._failures[role] = error
            self.failed.set()
            self._starting.cancel()

    async def _listen(self) -> None:
        async with self._client:
            with self._leaving:
                await self._client.listen()
