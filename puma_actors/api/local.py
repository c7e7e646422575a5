"""All five roles in one process.

    async with LocalCluster.from_pretrained(path_or_name) as cluster:
        logits = await cluster.forward(input_ids)
        async for token in cluster.generate("What is ...", max_new_tokens=32): ...

`puma_actors.api.blocking.PrivateModel` is the same for code without an event loop.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self, Unpack

import anyio

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import Checkpoint, open_checkpoint
from models.programs.families import sources_of
from models.programs.memory import footprint
from models.programs.plan import Plan
from models.programs.program import Batch
from models.programs.steps import RequestSettings, StepSettings
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, ModelError
from protocols.kernels import warm_up
from puma_actors.api.keeping import fits, spool_for
from puma_actors.api.life import Cluster
from puma_actors.api.options import ClusterOptions
from puma_actors.api.requests import Token, Usage
from puma_actors.base.allocator import give_back
from puma_actors.base.available import available_memory
from puma_actors.base.compute import Compute
from puma_actors.roles.actor import MEMORY, Actor, ActorOptions, connect_all
from puma_actors.roles.client import Client
from puma_actors.roles.common import Common, InCommon
from puma_actors.roles.opened import Opened
from puma_actors.roles.owner import Owner, Progress, check_opened, ignore_progress
from puma_actors.roles.party import Party
from puma_actors.roles.spool import Spool, Spooled
from puma_actors.roles.upload import Kept
from puma_actors.session.mailbox import Flow
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import Network, parse_network

__all__ = ["LocalCluster", "Token", "Usage"]

_WINDOW = 64 << 20
"""Bytes dealt ahead of an evaluator: both are in this process, and one is as fast as the other."""


async def check_memory(
    plan: Plan, batch: Batch, steps: int, settings: StepSettings, draft: int = 0
) -> None:
    """Check that there is enough memory for a request at all three parties, which share this
    process. Raises ConfigError if not.
    """
    needs = (
        footprint(plan.config, batch, steps, settings, dealer=role.is_dealer, draft=draft)
        for role in COMPUTING
    )
    need = sum(each.total for each in needs)
    if need > available_memory():
        await give_back()  # memory that earlier requests left
    if need > (free := available_memory()):
        raise ConfigError(
            f"{batch.tokens} tokens need about {need // 1_000_000:,} MB of memory for the "
            f"parties in this process, {free // 1_000_000:,} MB are available: shorten the "
            "text, or run the parties on machines of their own (--cluster)"
        )


class LocalLinks:
    """`Links` to parties in this process. The owner shares the model with them first. Closing the
    links closes the checkpoint.

    Args: as for `LocalCluster`; address: as for `connect_all`.
    """

    once = "a cluster runs once: make a new one"

    def __init__(
        self,
        owner: Owner,
        parties: Sequence[Party],
        checkpoint: Checkpoint,
        *,
        address: str,
        network: Network | None,
        progress: Progress,
        spool: Spool | None,
        public_weights: bool,
    ) -> None:
        self.actors: tuple[Actor, ...] = (owner, *parties)
        self.seconds: dict[str, float] = {}
        self._owner = owner
        self._parties = parties
        self._checkpoint = checkpoint
        self._address = address
        self._network = network
        self._progress = progress
        self._spool = spool
        self._public_weights = public_weights

    async def connect(self, client: Client) -> None:
        """Compile missing kernels, then connect every two actors and shake hands."""
        started = time.perf_counter()
        ready = partial(warm_up, public_weights=self._public_weights)
        await anyio.to_thread.run_sync(ready, lambda line: self._progress(line, 0.0))
        self.seconds["kernels"] = time.perf_counter() - started
        actors = [self._owner, client, *self._parties]
        await connect_all(actors, self._address, network=self._network)

    async def settle(self) -> None:
        """Wait until the owner also knows that the parties have the model."""
        await self._owner.delivered.wait()
        await give_back()  # sharing leaves a fifth of the model's size in fragments
        self.seconds.update(self._owner.seconds)

    async def aclose(self) -> None:
        """Close the checkpoint, and return free memory and disk space to the system."""
        self._checkpoint.close()
        if self._spool is not None:
            await anyio.to_thread.run_sync(self._spool.close)
        await give_back()


class LocalCluster(Cluster):
    """Owner, client, dealer and two evaluators as actors in this process.

    Args:
        checkpoint: an open checkpoint; closed with the cluster.
        tokenizer: None if the model has none; then only token ids can be given.
        settings: approximation set, tree and lanes. `Settings` hold for every step. Default: what
            is best for each kind of step, see `models.programs.steps.RequestSettings`.
        codec: force every frame through the wire format instead of passing it by reference.
        network: the network to emulate between the roles: a preset ("wan"), a text or a file as
            for `parse_network`; None: none. The upload of the shares goes through it too.
        address: where each role listens, as for `connect_all`; default: in memory. With a network
            address, frames go through sockets and `codec` has no effect.
        texts: token ids of texts on which the owner tests the model's precision before sharing
            it, in addition to made-up tokens.
        memory: bytes that the model may take, for all roles together; default: what is available. A
            model that needs more stays on disk, and is read once in each step.
        public_weights: the parties know the weights, as the checkpoint stores them. Prompts and
            answers stay private; the weights do not. Less work, and 2 bytes a weight in bfloat16.
        recorder: records what happens on every lane, if given (see
            `puma_actors.profiling.profile`).
        progress: called while compiling, loading and sharing.

    Raises (from any method): ConfigError for unusable arguments; PeerFailed if an actor died.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | None,
        *,
        settings: Settings | RequestSettings | None = None,
        codec: bool = False,
        network: Network | str | Path | None = None,
        address: str = "",
        compute: Compute | None = None,
        texts: Sequence[Sequence[int]] = (),
        memory: int | None = None,
        public_weights: bool = False,
        recorder: Recorder | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        wished = RequestSettings.of(settings)
        check_opened(checkpoint)
        _check_tokenizer(checkpoint, tokenizer)
        options = ActorOptions(
            flow=Flow(window=_WINDOW),
            compute=compute or Compute(),
            recorder=recorder,
        )
        self.checkpoint = checkpoint
        between = parse_network(network)
        spool = None if public_weights else spool_for(checkpoint.config, memory)
        kept = _opened(checkpoint) if public_weights else _own_shares(spool)
        self._owner = Owner(
            checkpoint,
            options,
            texts=texts,
            progress=progress,
            weights="public" if public_weights else "private",
            lazy=public_weights or not fits(checkpoint.config, memory),
        )
        self._parties = [Party(role, options, kept=kept(role)) for role in COMPUTING]
        links = LocalLinks(
            self._owner,
            self._parties,
            checkpoint,
            address=address or MEMORY + ("?codec=1" if codec else ""),
            network=between,
            progress=progress,
            spool=spool,
            public_weights=public_weights,
        )
        client = Client(options, check=check_memory)
        super().__init__(checkpoint.config, tokenizer, client, wished, links, between)
        self.sentences, self.ranking = checkpoint.sentences, checkpoint.ranking

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
            ModelError: the model cannot be read or is not supported.
        """
        progress = options.get("progress")
        checkpoint = open_checkpoint(path_or_name, head=head, progress=progress)
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
        """A cluster for a transformers model in memory, with or without a PEFT LoRA adapter.

        Neither is changed. The weights are read when the cluster is entered, tensor by tensor.

        Args:
            model: see `models.checkpoints.in_memory.open_model`.
            tokenizer: one of transformers, or a `models.tokens.tokenizer.Tokenizer`; None: only
                token ids can be given.
            head: what to evaluate above the model (default: what its class is made for).

        Raises:
            ConfigError: the model or tokenizer is of another kind. ModelError: the model is not
            supported.
        """
        known = None if tokenizer is None else Tokenizer.from_object(tokenizer)
        checkpoint = open_model(model, head=head)
        try:
            return cls(checkpoint, known, **options)
        except BaseException:
            checkpoint.close()
            raise

    def observe(self, recorder: Recorder | None) -> None:
        """From the next request on, record what happens on its lanes; None: do not record."""
        for actor in (self.client, *self._parties):
            actor.observe(recorder)

    def rounds_done(self) -> int | None:
        step = self.step
        return (
            None if step is None else max(party.rounds(step.number) for party in self._parties[1:])
        )


def _opened(checkpoint: Checkpoint) -> Callable[[Role], Kept]:
    """Where each party finds public weights."""
    return partial(Opened, sources=list(sources_of(checkpoint)))


def _own_shares(spool: Spool | None) -> Callable[[Role], Kept]:
    """Where each party keeps its shares: in memory, or in a spool."""
    common = Common()
    if spool is None:
        return partial(InCommon, common=common)
    return partial(Spooled, spool=spool, common=common)


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
