"""All five roles in one process.

    async with LocalCluster.from_pretrained(path_or_name) as cluster:
        logits = await cluster.forward(input_ids)
        async for token in cluster.generate("What is ...", max_new_tokens=32): ...

`puma_actors.private.PrivateModel` is the same for code without an event loop.
"""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import numpy as np
from anyio.abc import TaskGroup

from models.calibrate import TEXTS
from models.plan import Plan
from models.predict import predict
from models.sampling import Sampler, SamplingConfig, StopWatcher
from models.tokenizer import Tokenizer
from models.weights import Checkpoint, open_checkpoint
from protocols.cost import Cost
from protocols.errors import ConfigError, ModelError, PeerFailed, PumaError
from protocols.kernels import warm_up
from protocols.lane import Settings
from protocols.ring import Floats
from protocols.shares import COMPUTING
from puma_actors.actor import MEMORY, Actor, connect_all
from puma_actors.client import Client, Inference
from puma_actors.compute import Compute
from puma_actors.messages import infer_message
from puma_actors.owner import Owner, Progress, ignore_progress
from puma_actors.party import Party


@dataclass
class Usage:
    """What one request took. Seconds by phase; one cost for prefill and one for each later step."""

    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: list[Cost] = field(default_factory=list)
    stop_reason: str = ""

    @property
    def total(self) -> Cost:
        """Sum over the steps."""
        return sum(self.steps, Cost())


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its id and the text that became final with it (often empty)."""

    id: int | None
    text: str


class LocalCluster:
    """Owner, client, dealer and two evaluators as actors in this process.

    Args:
        checkpoint: an open checkpoint; closed with the cluster.
        tokenizer: None if the model has none; then only token ids can be given.
        settings: approximation set, comparison tree, lanes.
        codec: force every frame through the wire format instead of passing it by reference.
        address: where each role listens, as for `connect_all`; default: in memory. With a network's
            address frames go through sockets, and `codec` has no meaning.
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
        address: str = "",
        compute: Compute | None = None,
        progress: Progress = ignore_progress,
    ) -> None:
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.settings = settings or Settings()
        infer_message(0, 1, 1, self.settings, all_rows=False)  # refuse unusable ones early
        self.usage = Usage()
        self.seconds: dict[str, float] = {}
        self._no_tokenizer = "none was passed"
        self._address = address or MEMORY + ("?codec=1" if codec else "")
        self._progress = progress
        self._busy = anyio.Semaphore(1)  # no lock: a stream may be closed by another task
        options: dict[str, Any] = {"compute": compute or Compute(), "settings": self.settings}
        self._owner = Owner(checkpoint, self._texts(), progress=progress, **options)
        self._client = Client(**options)
        self._parties = [Party(role, **options) for role in COMPUTING]
        self._group: TaskGroup | None = None
        self._client_scope: anyio.CancelScope | None = None
        self._failures: list[BaseException] = []

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **options: Any) -> Self:
        """A cluster for a directory, a file, or a name on the Hugging Face hub.

        Raises:
            ModelError: it cannot be read or is not supported.
        """
        checkpoint = open_checkpoint(path_or_name)
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
        cluster._no_tokenizer = reason
        return cluster

    def _texts(self) -> list[list[int]]:
        """Token sequences for the owner's calibration, of its own choice."""
        config = self.checkpoint.config
        if self.tokenizer is None:
            size = config.vocab_size
            texts = [
                [(7919 * i * i + 104729 * i + seed) % size for i in range(48)] for seed in (1, 2)
            ]
        else:
            texts = [self.tokenizer.encode(text) for text in TEXTS]
            texts.append(self.tokenizer.chat(TEXTS[0]))
        if max(map(max, texts)) >= config.vocab_size:
            raise ModelError(
                f"{self.checkpoint.path}: the tokenizer beside it has more tokens than the model's "
                f"{config.vocab_size}: put the model's own tokenizer there"
            )
        return [ids[: config.max_positions] for ids in texts]

    # -- life -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._client_scope is not None:
            raise ConfigError("a cluster runs once: make a new one")
        self._client_scope = anyio.CancelScope()
        started = time.perf_counter()
        try:
            await anyio.to_thread.run_sync(warm_up, lambda line: self._progress(line, 0.0))
            self.seconds["kernels"] = time.perf_counter() - started
            actors: list[Actor] = [self._owner, self._client, *self._parties]
            await connect_all(actors, self._address)
        except BaseException:
            self.checkpoint.close()
            raise
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        try:
            for actor in (self._owner, *self._parties):
                self._group.start_soon(self._supervise, actor)
            self._group.start_soon(self._supervise_client, self._client_scope)
            await self._client.wait_ready()
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
                await self._client.close()
        else:
            group.cancel_scope.cancel()
        self._client_scope.cancel()
        try:
            await group.__aexit__(None, None, None)
        finally:
            self.checkpoint.close()
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
                async with self._client:
                    await self._client.listen()
        except Exception as error:
            self._failures.append(error)

    # -- requests ---------------------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        """The public plan of the model that is shared."""
        if self._client.plan is None:
            raise ConfigError("the cluster is not running: use `async with`")
        return self._client.plan

    def predict(self, prompt: int, decode: int = 0, *, all_rows: bool = False) -> list[Cost]:
        """The cost of a request, from shapes alone: prefill, then each decoded token."""
        steps = predict(self.plan, prompt, decode, self.settings, all_rows=all_rows)
        return [step.cost for step in steps]

    async def forward(self, input_ids: Sequence[int] | Any, *, last_only: bool = False) -> Floats:
        """Logits (tokens, vocabulary) of a token sequence; if `last_only`, of its last token."""
        ids = [int(token) for token in np.asarray(input_ids).reshape(-1)]
        self.check_ids(ids)
        async with self._busy:
            self._check_running()
            self.usage = Usage(prompt_ids=ids)
            started = time.perf_counter()
            settings = _with_reveal(self.settings, "logits")
            inference = await self._client.begin(len(ids), 1, settings, all_rows=not last_only)
            try:
                logits = await self._client.step(inference, ids)
                await self._client.wait_reports(inference)
            finally:
                await self._finish(inference)
            self.usage.seconds["prefill"] = time.perf_counter() - started
            return logits

    def _check_running(self) -> None:
        if self._group is None:
            raise ConfigError("the cluster is not running: use `async with`")

    def encode(self, prompt: str | Sequence[int], *, raw: bool = False) -> list[int]:
        """Token ids of a prompt: through the chat template unless `raw`; ids are taken as they are.

        Raises:
            ConfigError: the prompt is empty, or text was given to a model without a tokenizer.
        """
        if not isinstance(prompt, str):
            ids = [int(token) for token in prompt]
        elif not prompt.strip():
            raise ConfigError("the prompt is empty: give some text")
        elif self.tokenizer is None:
            raise ConfigError(
                f"no tokenizer, so only token ids can be given ({self._no_tokenizer})"
            )
        else:
            ids = self.tokenizer.encode(prompt) if raw else self.tokenizer.chat(prompt)
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Sequence[int]) -> None:
        """Refuse token ids that the model cannot take, before any work starts.

        Raises:
            ConfigError: none at all, too many, or one outside the vocabulary.
        """
        config = self.checkpoint.config
        if not ids:
            raise ConfigError("the prompt is empty: give at least one token")
        for token in ids:
            if not 0 <= token < config.vocab_size:
                raise ConfigError(
                    f"token id {token} is not in the model's vocabulary of {config.vocab_size}"
                )
        if len(ids) > config.max_positions:
            raise ConfigError(
                f"{len(ids)} prompt tokens do not fit the model's {config.max_positions} "
                "positions: shorten the prompt"
            )

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Refuse a choice of tokens that needs logits the client is not to see.

        Raises:
            ConfigError: see the text.
        """
        if self.settings.reveal == "argmax" and (
            sampling.temperature > 0 or sampling.repetition_penalty != 1
        ):
            raise ConfigError(
                "with secret logits only the best token is revealed: use temperature 0 and no "
                "repetition penalty"
            )

    async def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingConfig | None = None,
        *,
        raw: bool = False,
        **options: Any,
    ) -> AsyncGenerator[Token, None]:
        """Stream tokens. `usage` holds what it took, up to date after every token.

        Args:
            prompt: text, or token ids.
            sampling: or its fields as keywords (`max_new_tokens=32`, `temperature=0.7`, ...).
            raw: do not apply the chat template.
        """
        sampling = sampling or SamplingConfig(**options)
        self.check_sampling(sampling)
        ids = self.encode(prompt, raw=raw)
        async with self._busy, aclosing(self._tokens(ids, sampling)) as tokens:
            async for token in tokens:
                yield token

    async def _tokens(
        self, ids: list[int], sampling: SamplingConfig
    ) -> AsyncGenerator[Token, None]:
        self._check_running()
        usage = self.usage = Usage(prompt_ids=ids)
        room = self.plan.config.max_positions - len(ids) + 1
        steps = min(sampling.max_new_tokens, room)
        inference = await self._client.begin(len(ids), steps, self.settings)
        sampler, watcher = Sampler(sampling), StopWatcher(sampling.stop)
        stream = self.tokenizer.stream() if self.tokenizer is not None else None
        ends = set(self.plan.config.eos_token_ids)
        if self.tokenizer is not None:
            ends |= set(self.tokenizer.eos_token_ids)
        given = ids
        try:
            for _ in range(steps):
                started = time.perf_counter()
                answer = await self._client.step(inference, given)
                phase = "prefill" if given is ids else "decode"
                spent = time.perf_counter() - started
                usage.seconds[phase] = usage.seconds.get(phase, 0.0) + spent
                usage.steps = _known_costs(inference)
                token = self._pick(answer, sampler, ids + usage.token_ids)
                usage.token_ids.append(token)
                if token in ends:
                    usage.stop_reason = "end of text"
                    break
                yield Token(token, watcher.push(stream.push(token)) if stream else "")
                if watcher.stopped:
                    usage.stop_reason = "stop string"
                    break
                given = [token]
            else:
                usage.stop_reason = "length" if steps == sampling.max_new_tokens else "context"
            rest = (watcher.push(stream.finish()) + watcher.finish()) if stream else ""
            if rest:
                yield Token(None, rest)
        finally:
            await self._finish(inference)

    def _pick(self, answer: Floats, sampler: Sampler, previous: list[int]) -> int:
        if self.settings.reveal == "argmax":
            return int(answer[0])
        return sampler.next(answer[-1], previous)

    async def _finish(self, inference: Inference) -> None:
        """End an inference, unless the session is broken anyway; keep the final costs."""
        with suppress(PumaError):
            await self._client.end(inference)
        self.usage.steps = _known_costs(inference)


def _known_costs(inference: Inference) -> list[Cost]:
    return [inference.costs[step] for step in sorted(inference.costs)]


def _with_reveal(settings: Settings, reveal: str) -> Settings:
    return Settings(settings.approximation, settings.tree, settings.lanes, reveal)
