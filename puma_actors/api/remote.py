"""Models on three parties elsewhere: asking them, and uploading to them.

    cluster = await RemoteCluster.open(config, "llama")     admitted by all three; plan, tokenizer
    async with cluster:                                     keys agreed; then as `LocalCluster`
        logits = await cluster.forward([1, 2, 3])
    await upload_model(config, checkpoint, "llama")

An opened cluster that is not entered must be closed with `aclose`. A session that has failed
is over: to try again, open a new one, which has a new id and new keys.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import TaskGroup

from models.checkpoints.weights import Checkpoint
from models.programs.plan import Plan
from models.programs.program import Batch
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.base.ring import Floats
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, ModelError, PeerFailed, PumaError, RemoteProtocolError
from puma_actors.api.requests import Requests
from puma_actors.base.compute import Compute
from puma_actors.hosts.caller import Call, call_all, discard_model, hang_up, shake_hands
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.manifest import PUBLIC_BYTES, check_name
from puma_actors.roles.actor import ActorOptions
from puma_actors.roles.client import Client, Inference
from puma_actors.roles.messages import CommitMessage, FileMessage
from puma_actors.roles.owner import Owner, Progress, check_opened, ignore_progress
from puma_actors.transports.delay.network import Network


class RemoteClient(Client):
    """A client that knows the plan from the parties, and their largest request."""

    def __init__(self, plan: Plan, tokens: int, options: ActorOptions | None = None) -> None:
        super().__init__(options)
        self.plan = plan
        self._most = self.tokens = tokens

    async def begin(
        self, batch: Batch, steps: int = 1, settings: Settings | None = None
    ) -> Inference:
        wanted = batch.tokens + steps - 1
        running = sum(each.batch.tokens + each.steps - 1 for each in self._inferences.values())
        if wanted + running > self._most:
            raise ConfigError(
                f"{wanted + running} tokens (prompt and answer) at once, the parties allow "
                f"{self._most}: shorten the text or ask for fewer tokens"
            )
        return await super().begin(batch, steps, settings)


class RemoteCluster(Requests):
    """See the module's text. Made by `open`.

    Attributes:
        model: its name at the parties. session: the session's id, in hex.
        seconds: what opening and connecting took.

    Raises (from any method): ConfigError for unusable arguments; PeerFailed if a party died.
    """

    def __init__(
        self,
        cluster: ClusterConfig,
        model: str,
        calls: Mapping[Role, Call],
        tokenizer: Tokenizer | None,
        settings: Settings,
        compute: Compute | None = None,
    ) -> None:
        plan, tokens = _agreed(calls)
        name = cluster.identity(Role.CLIENT).name
        options = ActorOptions(name=name, compute=compute or Compute(), settings=settings)
        client = RemoteClient(plan, tokens, options)
        super().__init__(plan.config, tokenizer, client, settings)
        self.model = model
        self.seconds: dict[str, float] = {}
        self.session = calls[Role.DEALER].session.hex()
        self._cluster = cluster
        self._calls = calls
        self.no_tokenizer = "none was published with the model: pass --tokenizer"
        self._group: TaskGroup | None = None
        self._leaving = anyio.CancelScope()  # in good order
        self._scope = anyio.CancelScope()  # in a hurry
        self._entered = False
        self._failure: BaseException | None = None

    @classmethod
    async def open(
        cls,
        cluster: ClusterConfig,
        model: str,
        *,
        tokenizer: object | None = None,
        settings: Settings | None = None,
        compute: Compute | None = None,
    ) -> Self:
        """Ask all three parties for a session on a model; returns when all have it loaded.

        Args:
            tokenizer: where one lies, or one of transformers in memory; default: what the owner
                published with the model.

        Raises:
            Busy: a party has no place now. ConfigError: one refuses, or they hold different shares.
            TransportError: one cannot be reached.
        """
        started = anyio.current_time()
        own = None if tokenizer is None else _own_tokenizer(tokenizer)
        calls = await call_all(
            cluster, Role.CLIENT, "session", model=check_name(model), files=own is None
        )
        try:
            if own is None:
                own = _published(calls)
            made = cls(cluster, model, calls, own, settings or Settings(), compute)
            _check_vocabulary(own, made.plan)
        except BaseException:
            await hang_up(calls)
            raise
        made.seconds["open"] = anyio.current_time() - started
        return made

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise ConfigError("a session runs once: open a new one")
        self._entered = True
        started = anyio.current_time()
        try:
            self.client.attach(await shake_hands(self._cluster, Role.CLIENT, self._calls))
        except BaseException:
            await self.aclose()
            raise
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            self._group.start_soon(self._supervise)
            await self.client.wait_ready()
        except BaseException as error:
            await self._stop(error)
            raise
        self.seconds["connect"] = anyio.current_time() - started
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop(error)

    async def _stop(self, error: BaseException | None) -> None:
        assert self._group is not None
        group, self._group = self._group, None
        if error is None and self._failure is None:
            with suppress(PumaError):
                await self.client.close()
            self._leaving.cancel()
        else:
            self._scope.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            await self.aclose()
        if self._failure is not None and (error is None or isinstance(error, PeerFailed)):
            raise self._failure

    async def _supervise(self) -> None:
        try:
            with self._scope:
                async with self.client:
                    with self._leaving:
                        await self.client.listen()
        except Exception as error:  # raised by `_stop`
            self._failure = error

    async def aclose(self) -> None:
        """Close the connections."""
        await hang_up(self._calls)

    @property
    def network(self) -> Network | None:
        """What is modelled on this client's connections."""
        return self._cluster.between

    @property
    def running(self) -> bool:
        return self._group is not None


def _agreed(calls: Mapping[Role, Call]) -> tuple[Plan, int]:
    """The plan that all three parties announce, and the largest request that all allow.

    Raises:
        ConfigError: they hold shares that do not belong together.
        RemoteProtocolError: an answer is unusable.
    """
    entries = {peer: each.answer.model for peer, each in calls.items()}
    held = {(entry.digest, entry.upload) for entry in entries.values() if entry is not None}
    if len(held) != 1 or None in entries.values():
        raise ConfigError(
            "the parties hold different uploads of this model: run `puma models remove`, then "
            "`puma upload` again"
        )
    try:
        plan = Plan.from_public(calls[Role.DEALER].answer.plan)
    except ModelError as error:
        raise RemoteProtocolError(f"the announced plan is unusable: {error}") from None
    if {plan.digest()} != {digest for digest, _ in held}:
        raise RemoteProtocolError("the announced plan does not have the announced digest")
    return plan, min(each.answer.tokens for each in calls.values())


def _published(calls: Mapping[Role, Call]) -> Tokenizer | None:
    """The tokenizer that the owner published, which all three parties must have alike."""
    parts = {tuple((p.name, p.sha256) for p in each.answer.files) for each in calls.values()}
    if len(parts) != 1:
        raise ConfigError(
            "the parties hold different tokenizers for this model: pass --tokenizer, or run `puma "
            "models remove`, then `puma upload` again"
        )
    dealer = calls[Role.DEALER]
    if len(dealer.buffers) != len(dealer.answer.files):
        raise RemoteProtocolError("the dealer sent other files than it announced")
    files = {}
    for part, buffer in zip(dealer.answer.files, dealer.buffers, strict=True):
        files[part.name] = bytes(buffer)
        if hashlib.sha256(buffer).hexdigest() != part.sha256:
            raise RemoteProtocolError(f"{part.name} does not have the announced checksum")
    return Tokenizer.from_files(files) if files else None


def _own_tokenizer(given: object) -> Tokenizer:
    if isinstance(given, str | PathLike):
        return Tokenizer.load(Path(given))
    return Tokenizer.from_object(given)


def _check_vocabulary(tokenizer: Tokenizer | None, plan: Plan) -> None:
    size = plan.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > size:
        raise ConfigError(
            f"the tokenizer has more tokens than the model's {size}: pass the model's own"
        )


# -- uploading -------------------------------------------------------------------------------------


class _Uploader(Owner):
    """An owner whose parties keep what they get. Each writes everything to its disk first; when all
    have, they make it a model of their stores; and when all have done that, they are told to keep
    it. A party that is not told, or is gone before it could note it, takes its model away again, so
    that none has one that others lack.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        files: Mapping[str, bytes],
        options: ActorOptions,
        *,
        texts: Sequence[Sequence[int]] = (),
        progress: Progress = ignore_progress,
    ) -> None:
        super().__init__(checkpoint, options, texts=texts, progress=progress)
        self._files = files
        self.committing = False

    async def _upload(self, plan: Plan, parameters: dict[str, Floats]) -> None:
        for name, data in self._files.items():
            message = FileMessage.model_validate({"name": name})
            for role in COMPUTING:
                await self.scheduler.send_control(role, message.header(), [data])
        await super()._upload(plan, parameters)

    async def _wait_ready(self, plan: Plan) -> None:
        await super()._wait_ready(plan)
        self.committing = True
        for _ in ("publish", "keep"):
            await self._commit()
            await super()._wait_ready(plan)

    async def _commit(self) -> None:
        for role in COMPUTING:
            await self.scheduler.send_control(role, CommitMessage().header())


async def upload_model(
    config: ClusterConfig,
    checkpoint: Checkpoint,
    name: str,
    *,
    tokenizer: object | None = None,
    texts: Sequence[Sequence[int]] = (),
    compute: Compute | None = None,
    progress: Progress = ignore_progress,
) -> dict[str, float]:
    """Share a model's weights with the parties' stores; all of them keep it, or none.

    Args:
        checkpoint: an open one, of a file (`open_checkpoint`) or of a model in memory
            (`open_model`).
        texts: token ids of texts on which precision is tried, beside made-up tokens.
        tokenizer: published with the model, so that clients need none of their own; a `Tokenizer`,
            or one of transformers in memory.

    Returns:
        Seconds for loading, calibrating and sharing.

    Raises:
        ConfigError: a party refuses. Busy: it has no place now. PeerFailed: it failed, and why.
    """
    check_opened(checkpoint)
    files = {} if tokenizer is None else Tokenizer.from_object(tokenizer).to_files()
    size = sum(map(len, files.values()))
    if size > PUBLIC_BYTES:
        raise ConfigError(
            f"the tokenizer has {size} bytes, at most {PUBLIC_BYTES} are published: upload without "
            "it (--no-tokenizer)"
        )
    progress("calling the parties", 0.0)
    calls = await call_all(config, Role.OWNER, "upload", model=check_name(name))
    identity = config.identity(Role.OWNER)
    options = ActorOptions(name=identity.name, compute=compute or Compute())
    owner = _Uploader(checkpoint, files, options, texts=texts, progress=progress)
    try:
        owner.attach(await shake_hands(config, Role.OWNER, calls))
        await owner.run()
    except BaseException:
        await hang_up(calls)
        if owner.committing:  # some may have made it a model already
            with anyio.CancelScope(shield=True):
                await discard_model(config, name)
        raise
    finally:
        await hang_up(calls)
    return owner.seconds
