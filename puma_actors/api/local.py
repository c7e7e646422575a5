"""All five roles in one process.

    async with LocalCluster.from_pretrained(path_or_name) as cluster:
        logits = await cluster.forward(input_ids)
        async for token in cluster.generate("What is ...", max_new_tokens=32): ...

`puma_actors.api.blocking.PrivateModel` is the same for code without an event loop.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import anyio
from anyio.abc import TaskGroup

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import Checkpoint, open_checkpoint
from models.programs.memory import footprint
from models.programs.program import Batch
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING
from protocols.errors import ConfigError, ModelError, PeerFailed, PumaError
from protocols.kernels import warm_up
from puma_actors.api.options import ClusterOptions
from puma_actors.api.requests import Requests, Token, Usage
from puma_actors.base.available import available_memory
from puma_actors.base.compute import Compute, give_back
from puma_actors.roles.actor import MEMORY, Actor, ActorOptions, connect_all
from puma_actors.roles.client import Client, Inference
from puma_actors.roles.owner import Owner, Progress, check_opened, ignore_progress
from puma_actors.roles.party import Party
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import Network, parse_network

__all__ = ["LocalCluster", "Token", "Usage"]


class LocalClient(Client):
    """A client whose parties share its process, and its memory."""

    async def begin(
        self, batch: Batch, steps: int = 1, settings: Settings | None = None
    ) -> Inference:
        plan = await self.wait_ready()
        needs = (
            footprint(plan.config, batch, steps, settings, dealer=role.is_dealer)
            for role in COMPUTING
        )
        need = sum(each.total for each in needs)
        if need > available_memory():
            await give_back()  # what earlier requests left
        if need > (free := available_memory()):
            raise ConfigError(
                f"{batch.tokens} tokens need about {need // 1_000_000:,} MB of memory for the "
                f"parties in this process, {free // 1_000_000:,} MB are available: shorten the "
                "text, or run the parties on machines of their own (--cluster)"
            )
        return await super().begin(batch, steps, settings)


class LocalCluster(Requests):
    """Owner, client, dealer and two evaluators as actors in this process.

    Args:
        checkpoint: an open checkpoint; closed with the cluster.
        tokenizer: None if the model has none; then only token ids can be given.
        settings: approximation set, comparison tree, lanes.
        codec: force every frame through the wire format instead of passing it by reference.
        network: what to put between the roles: a preset ("wan"), a text or a file as for
            `parse_network`; None: nothing. The upload of the shares goes through it too.
        address: where each role listens, as for `connect_all`; default: in memory. With a network's
            address frames go through sockets, and `codec` has no meaning.
        texts: token ids of texts on which the owner tries the model's precision before it is
            shared, beside made-up tokens.
        recorder: notes what happens on every lane (see `puma_actors.profiling.profile`); None:
            nobody does.
        progress: told about compiling, loading and sharing.

    Raises (from any method): ConfigError for unusable arguments; PeerFailed if an actor died.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | None,
        *,
        settings: Settings | None = None,
        codec: bool = False,
        network: Network | str | Path | None = None,
        address: str = "",
        compute: Compute | None = None,
        texts: Sequence[Sequence[int]] = (),
        recorder: Recorder | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        settings = Settings() if settings is None else settings
        if not isinstance(settings, Settings):
            raise ConfigError(f"settings are {type(settings).__name__}: give a Settings")
        check_opened(checkpoint)
        _check_tokenizer(checkpoint, tokenizer)
        options = ActorOptions(compute=compute or Compute(), settings=settings, recorder=recorder)
        super().__init__(checkpoint.config, tokenizer, LocalClient(options), settings)
        self.checkpoint = checkpoint
        self.network = parse_network(network)
        self.seconds: dict[str, float] = {}
        self._address = address or MEMORY + ("?codec=1" if codec else "")
        self._progress = progress
        self._owner = Owner(checkpoint, options, texts=texts, progress=progress)
        self._parties = [Party(role, options) for role in COMPUTING]
        self._group: TaskGroup | None = None
        self._client_scope: anyio.CancelScope | None = None
        self._failures: list[BaseException] = []

    @classmethod
    def from_pretrained(
        cls,
        path_or_name: str | Path,
        *,
        head: str | None = None,
        **options: Unpack[ClusterOptions],
    ) -> Self:
        """A cluster for a directory, a file, or a name on the Hugging Face hub.

        Args:
            head: what to evaluate above the model, see `models.configs.heads` (default: what the
                checkpoint was made for).

        Raises:
            ModelError: it cannot be read or is not supported.
        """
        checkpoint = open_checkpoint(path_or_name, head=head)
        tokenizer, reason = None, ""
        try:
            tokenizer = Tokenizer.load(checkpoint.path)
        except ModelError as error:
            reason = str(error)
        try:
            cluster = cls(checkpoint, tokenizer, **options)
        except BaseException:
            checkpoint.close()
            raise
        cluster.no_tokenizer = reason
        return cluster

    @classmethod
    def from_model(
        cls,
        model: object,
        tokenizer: object | None = None,
        *,
        head: str | None = None,
        **options: Unpack[ClusterOptions],
    ) -> Self:
        """A cluster for a model of transformers that is in memory, with or without LoRA of PEFT.

        Neither is changed. The weights are read when the cluster is entered, tensor by tensor.

        Args:
            model: see `models.checkpoints.in_memory.open_model`.
            tokenizer: of transformers, or a `models.tokens.tokenizer.Tokenizer`; None: only token
                ids can be given.
            head: what to evaluate above the model (default: what its class is made for).

        Raises:
            ConfigError: they are something else. ModelError: the model is not supported.
        """
        known = None if tokenizer is None else Tokenizer.from_object(tokenizer)
        checkpoint = open_model(model, head=head)
        try:
            return cls(checkpoint, known, **options)
        except BaseException:
            checkpoint.close()
            raise

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._client_scope is not None:
            raise ConfigError("a cluster runs once: make a new one")
        self._client_scope = anyio.CancelScope()
        started = time.perf_counter()
        try:
            await anyio.to_thread.run_sync(warm_up, lambda line: self._progress(line, 0.0))
            self.seconds["kernels"] = time.perf_counter() - started
            actors: list[Actor] = [self._owner, self.client, *self._parties]
            await connect_all(actors, self._address, network=self.network)
        except BaseException:
            self.checkpoint.close()
            raise
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            for actor in (self._owner, *self._parties):
                self._group.start_soon(self._supervise, actor)
            self._group.start_soon(self._supervise_client, self._client_scope)
            await self.client.wait_ready()
            while not self._owner.seconds and not self._failures:
                await anyio.sleep(0.005)
            if self._failures:
                raise self._failures[0]
        except BaseException as error:
            await self._stop(error)
            raise
        self.seconds.update(self._owner.seconds)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop(error)

    async def _stop(self, error: BaseException | None) -> None:
        """End all actors; if one of them failed first, raise what it failed with."""
        assert self._group is not None and self._client_scope is not None
        group, self._group = self._group, None
        if error is None and not self._failures:
            with suppress(PumaError):
                await self.client.close()
        else:
            group.cancel_scope.cancel()
        self._client_scope.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            self.checkpoint.close()
            await give_back()
        causes = [e for e in self._failures if not isinstance(e, PeerFailed)]
        if causes and (error is None or isinstance(error, PeerFailed)):
            raise causes[0]

    async def _supervise(self, actor: Actor) -> None:
        try:
            await actor.run()
        except Exception as error:  # told to the others by the actor, and raised by `_stop`
            self._failures.append(error)

    async def _supervise_client(self, scope: anyio.CancelScope) -> None:
        try:
            with scope:
                async with self.client:
                    await self.client.listen()
        except Exception as error:
            self._failures.append(error)

    def observe(self, recorder: Recorder | None) -> None:
        """From the next request on, `recorder` notes what happens on its lanes; None: nobody."""
        for actor in (self.client, *self._parties):
            actor.observe(recorder)

    def rounds_done(self) -> int | None:
        step = self.step
        return (
            None if step is None else max(party.rounds(step.number) for party in self._parties[1:])
        )

    # -- what a request needs ---------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._group is not None


def _check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> None:
    size = checkpoint.config.vocab_size
    if not isinstance(tokenizer, Tokenizer | None):
        raise ConfigError(
            f"the tokenizer is {type(tokenizer).__name__}: use from_model for one of transformers, "
            "or Tokenizer.from_object"
        )
    if tokenizer is not None and tokenizer.vocab_size > size:
        raise ModelError(
            f"{checkpoint.where}: the tokenizer has more tokens than the model's {size}: use the "
            "model's own tokenizer"
        )
