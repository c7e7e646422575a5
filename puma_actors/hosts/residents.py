"""Models that a party has loaded from its store, and the memory that it may use.

    residents = Residents(store, limits, compute)
    async with residents.lease("llama") as held:      loaded, checked, and kept until the block ends
        held.plan, held.parameters                    shared between sessions: never written to

Before anything is loaded or admitted, its memory is estimated and reserved. An unused model is
dropped when another one needs the room; the matrices of a model that is larger than the limit stay
on disk, and are read in each step; those of public weights always do, and are mapped; a session
that does not fit is refused with `Busy`, instead of running out of memory.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio

from models.programs.families import parameters_of
from models.programs.opened import opened_bytes
from models.programs.plan import Plan
from models.programs.predict import share_bytes, streamed_bytes
from models.programs.sharing import STREAMED, hold_parameter, stream_parameter
from protocols.errors import Busy, ConfigError, WorkersError
from protocols.kernels import warm_up
from puma_actors.base.compute import Compute
from puma_actors.base.logs import log
from puma_actors.hosts.config import Limits
from puma_actors.hosts.shelf import take_down
from puma_actors.hosts.stores.manifest import Manifest
from puma_actors.hosts.stores.store import ModelStore
from puma_actors.hosts.stores.stored import Stored, content_digest
from puma_actors.hosts.workers.cluster import Workers
from puma_actors.hosts.workers.placement import Placement
from puma_actors.roles.upload import Model
from puma_actors.session.mailbox import Flow

RETRY = 10
"""Seconds after which a refused caller may try again."""
_MB = 1_000_000


@dataclass(frozen=True)
class Held:
    """A loaded model. `files`: its published files. `nbytes`: an estimate of its memory.
    `placement`: its matrices, if this party's workers hold them.
    """

    manifest: Manifest
    plan: Plan
    parameters: Mapping[str, Any] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    nbytes: int
    placement: Placement | None = None

    @property
    def lost(self) -> bool:
        """Whether a worker that held a part of it is gone."""
        return self.placement is not None and bool(self.placement.lost)

    @property
    def model(self) -> Model:
        """As a party serves it."""
        content = content_digest(self.manifest, self.plan)
        return Model(self.plan, self.parameters, self.manifest.upload, content)


def least_bytes(plan: Plan) -> int:
    """Bytes of memory that a loaded model takes at least, with its matrices on disk. Files that are
    mapped count as nothing: the system drops them from its memory when it needs room.
    """
    return (opened_bytes if plan.weights == "public" else streamed_bytes)(plan.config)


def session_bytes(plan: Plan, tokens: int) -> int:
    """Memory of a session: shares of the keys and values of `tokens` tokens, and the bytes that may
    be dealt ahead.
    """
    return cache_bytes(plan, tokens) + Flow().window


def joined_bytes(plan: Plan, tokens: int) -> int:
    """Memory of a request of `tokens` tokens in a joint step, beyond that of its step alone: a
    layer's keys and values beside those of others, and once more, filled up to the longest.
    """
    return 3 * cache_bytes(plan, tokens) // plan.config.num_layers


def cache_bytes(plan: Plan, tokens: int) -> int:
    """Shares of the keys and values of `tokens` tokens."""
    config = plan.config
    heads = int(getattr(config, "num_kv_heads", 0) or config.num_heads)
    width = int(getattr(config, "head_dim", 0) or config.hidden_size // config.num_heads)
    return 2 * 2 * 8 * config.num_layers * heads * width * min(tokens, config.max_positions)


class Residents:
    """See the module docstring."""

    def __init__(
        self,
        store: ModelStore,
        limits: Limits,
        compute: Compute,
        workers: Workers | None = None,
    ) -> None:
        self._workers = workers
        self._store = store
        self._limits = limits
        self._compute = compute
        self._loaded: dict[str, Held] = {}  # least recently used first
        self._users: dict[str, int] = {}
        self._reserved = 0  # by sessions, and by models being loaded
        self._loading = anyio.Lock()

    @property
    def used(self) -> int:
        """Estimated bytes in use or reserved."""
        return self._reserved + sum(held.nbytes for held in self._loaded.values())

    def loaded(self, name: str) -> bool:
        """Whether a model is in memory."""
        return name in self._loaded

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator[Held]:
        """Lease a model and the memory for one session on it.

        Raises:
            StoreError: there is no such model, or it is damaged. Busy: no room now.
            ConfigError: it never fits within the limits.
        """
        manifest, plan = await self._compute.offload(self._describe, name)
        need = self.session_need(plan)
        self._users[name] = self._users.get(name, 0) + 1
        try:
            with self._room(name, need, need + self.model_bytes(plan), "session"):
                yield await self._hold(name, manifest)
        finally:
            self._users[name] -= 1
            if not self._users[name]:
                del self._users[name]

    def _describe(self, name: str) -> tuple[Manifest, Plan]:
        manifest = self._store.manifest(name)
        with self._store.reading(name):
            return manifest, Plan.from_public(manifest.plan)

    async def _hold(self, name: str, manifest: Manifest) -> Held:
        async with self._loading:
            held = self._loaded.pop(name, None)
            if held is not None and held.placement is not None:
                await held.placement.check()
            if held is None or held.manifest.upload != manifest.upload or held.lost:
                del held
                plan = Plan.from_public(manifest.plan)
                size = self.model_bytes(plan)
                with self._room(name, size, size, "model"):
                    held = await self._fetch(name, plan)
                log.info("model loaded", model=name, megabytes=held.nbytes // _MB)
            self._loaded[name] = held
            return held

    async def _fetch(self, name: str, plan: Plan) -> Held:
        if self._workers is None or plan.weights == "public":  # which the party maps itself
            return await self._compute.offload(self._load, name)
        for other in [each for each in self._loaded if not self._users.get(each)]:
            del self._loaded[other]  # the workers may need the room
        stored = await self._compute.offload(partial(self._store.read, name, verify=False))
        try:
            spread = await self._workers.hold(stored)
        except WorkersError as error:  # nothing is wrong with the request, or with the model
            raise Busy(str(error)) from None
        files = await self._compute.offload(stored.public_files)
        size = self.model_bytes(stored.plan)
        return Held(stored.manifest, stored.plan, spread.parameters, files, size, spread.placement)

    def _load(self, name: str) -> Held:
        stored = self._store.read(name, verify=False)  # each file is verified as it is read
        plan, files, size = stored.plan, stored.public_files(), self.model_bytes(stored.plan)
        if plan.weights == "public":
            warm_up(public_weights=True)
            parameters = take_down(stored, plan, self._store.role)
        else:
            parameters = self._shares(stored, plan)
        return Held(stored.manifest, plan, parameters, files, size)

    def _shares(self, stored: Stored, plan: Plan) -> dict[str, Any]:
        seeds, role, streams = stored.seeds(), self._store.role, self._streams(plan)
        parameters = {}
        for number, (tensor, parameter) in enumerate(parameters_of(plan.config).items()):
            if streams and parameter.kind in STREAMED:
                masked = None if role.is_dealer else stored.words(number)
                parameters[tensor] = stream_parameter(role, number, parameter, masked, seeds)
            else:
                m = None if role.is_dealer else stored.tensor(number, parameter)
                parameters[tensor] = hold_parameter(role, number, parameter, m, seeds)
        return parameters

    def _streams(self, plan: Plan) -> bool:
        """Whether a model's matrices stay on disk or at the workers: public ones do; private ones
        if there are workers, or with them in memory no session would fit.
        """
        return (
            plan.weights == "public"
            or self._workers is not None
            or share_bytes(plan.config) + self.session_need(plan) > self._limits.memory
        )

    def model_bytes(self, plan: Plan) -> int:
        """Bytes of memory that a loaded model takes."""
        return least_bytes(plan) if self._streams(plan) else share_bytes(plan.config)

    def drop(self, name: str) -> None:
        """Forget a model that was removed from the store; its users may finish."""
        self._loaded.pop(name, None)

    def session_need(self, plan: Plan) -> int:
        """Bytes reserved for a session, whatever its requests."""
        return session_bytes(plan, self._limits.inference_tokens)

    def for_request(self, plan: Plan, extra: int, need: int) -> "_Room":
        """Reserve memory for a request, until the block ends.

        Args:
            extra: bytes beyond those of the session. need: all bytes that its requests need.

        Raises:
            Busy: no room now. ConfigError: it never fits within the limits.
        """
        return self._room("", extra, need + self.model_bytes(plan), "request")

    def _room(self, name: str, size: int, least: int, what: str) -> "_Room":
        """Reserve memory; unused models make room."""
        limit, role = self._limits.memory, self._store.role
        if least > limit:
            who = "the request (with its model)" if what == "request" else f"model {name}"
            remedy = "shorten the text, or raise" if what == "request" else "raise"
            raise ConfigError(
                f"{who} needs about {least // _MB:,} MB at {role}, which may use "
                f"{limit // _MB:,} MB: {remedy} limits.memory there"
            )
        for other in list(self._loaded):
            if self.used + size > limit and not self._users.get(other):
                del self._loaded[other]
                log.info("model dropped to make room", model=other)
        if self.used + size > limit:
            raise Busy(
                f"{role} has no memory for another {what}, which needs about {size // _MB:,} MB "
                f"({self.used // _MB:,} of {limit // _MB:,} MB used): try again in {RETRY} s"
            )
        return _Room(self._reserve, size)

    def _reserve(self, size: int) -> None:
        self._reserved += size


class _Room:
    """Memory reserved for the duration of a `with` block."""

    def __init__(self, reserve: Callable[[int], None], size: int) -> None:
        self._reserve = reserve
        self._size = size

    def __enter__(self) -> None:
        self._reserve(self._size)

    def __exit__(self, *error: object) -> None:
        self._reserve(-self._size)
