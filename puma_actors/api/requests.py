"""Requests to a shared model: the same for all clusters, wherever their parties run."""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Unpack

import anyio

from models.configs.architecture import ModelConfig
from models.configs.tasks.ranking import RankingSettings
from models.configs.tasks.sentences import SentenceSettings
from models.drafts.drafter import Drafting
from models.owner.perplexity import log_likelihoods
from models.programs.head_layers import default_rows
from models.programs.plan import Plan, Weights
from models.programs.predict import predict
from models.programs.program import Batch, Drafted, Rows
from models.programs.steps import RequestSettings, StepSettings
from models.texts.requested import DraftOptions, GenerateOptions, split_options
from models.tokens.chat_template import ChatOptions
from models.tokens.sampling import (
    SamplingConfig,
    SamplingOptions,
    settings_of_model,
)
from models.tokens.stopping import AnswerText
from models.tokens.tokenizer import Tokenizer
from protocols.base.cost import Cost
from protocols.base.lane import Settings
from protocols.base.ring import Floats
from protocols.errors import ConfigError, PumaError
from puma_actors.api.drafting import Answer, Drafts, check_draft
from puma_actors.api.ids import token_ids, token_sequences, whole
from puma_actors.api.prompts import (
    Prompt,
    check_ids,
    check_last,
    check_logits,
    check_sampling,
    check_types,
    chosen_sampling,
    encode_prompt,
    ends_of,
)
from puma_actors.api.usage import Step, Token, Usage
from puma_actors.planning.choice import Choice, Chooser
from puma_actors.roles.client import Client, Inference
from puma_actors.roles.messages import infer_message
from puma_actors.transports.delay.network import Network

__all__ = ["Requests", "Step", "Token", "Usage", "check_ids", "check_logits"]


class Requests(ABC):
    """Requests of one client to one model. One runs at a time; others wait.

    Args:
        config: the model's architecture.
        tokenizer: None if the model has none; then only token ids can be given.
        client: the actor that talks to the parties.
        settings: settings of every request.
        route: the network that tree and lanes are chosen for; None: there is none.
        apart: whether every party has a machine of its own.

    Attributes:
        settings, route, apart: as above; `Settings` may be assigned, too.
        usage: cost of the last request.
        step: the running step, if any.
        no_tokenizer: why there is no tokenizer, if there is none.
        sentences: how texts become vectors, if the model says so.
        ranking: how pairs of texts become scores, if the model says so.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        client: Client,
        settings: RequestSettings,
        route: Network | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self.settings = settings
        self.route = route
        self.apart = apart
        self._chooser: Chooser | None = None
        self.config = config
        self.tokenizer = tokenizer
        self.client = client
        self.usage = Usage()
        self.step: Step | None = None
        self.no_tokenizer = "none was passed"
        self.sentences: SentenceSettings | None = None
        self.ranking: RankingSettings | None = None
        self._drafts = Drafts()
        self._busy = anyio.Semaphore(1)  # not a lock: another task may close a stream

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether the parties can take requests."""

    def rounds_done(self) -> int | None:
        """Rounds of the running step so far; None if only remote parties know."""
        return None

    @property
    def settings(self) -> RequestSettings:
        return self._settings

    @settings.setter
    def settings(self, given: RequestSettings | Settings | None) -> None:
        wished = RequestSettings.of(given)
        infer_message(0, Batch((1,)), 1, wished.variants()[0])  # refuse unusable ones early
        self._settings = wished

    def choose(
        self, batch: Batch, steps: int = 1, draft: int = 0, wished: RequestSettings | None = None
    ) -> Choice:
        """The settings of a request. What `wished` (default: `settings`) leaves open is chosen."""
        if self._chooser is None:
            self._chooser = Chooser(self.plan, self.route, apart=self.apart)
        return self._chooser.choose(batch, steps, wished or self.settings, draft)

    @property
    def plan(self) -> Plan:
        """The public plan of the shared model."""
        if self.client.plan is None:
            raise ConfigError("the cluster is not running: use `async with`")
        return self.client.plan

    @property
    def weights(self) -> Weights:
        """Whether the parties know the weights: "private" or "public"."""
        return self.plan.weights

    def predict(
        self,
        batch: Batch | int,
        decode: int | Sequence[Drafted] = 0,
        settings: StepSettings | None = None,
    ) -> list[Cost]:
        """Predict the cost of a request from shapes alone: first the batch (or a prompt of that
        many tokens), then each decoded token, or each step with a draft.
        """
        first = batch if isinstance(batch, Batch) else Batch((whole(batch, "a length"),), "last")
        later = decode if isinstance(decode, list | tuple) else whole(decode, "decode")
        steps = 1 + (later if isinstance(later, int) else len(later))
        chosen = settings or self.choose(first, steps).settings
        return [step.cost for step in predict(self.plan, first, later, chosen)]

    async def forward(
        self,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | Any,
        *,
        rows: Rows | None = None,
        types: Sequence[int] | None = None,
    ) -> Floats:
        """The model's result for a token sequence, or for several of any lengths.

        Args:
            input_ids: ids of one sequence, or a list of them for each sequence.
            rows: see `models.programs.program.Batch`; default: the rows that the model's head is
                meant for, and every token for the logits of a language model.
            types: token types of all tokens together (0, and 1 for the second text of a pair).

        Returns:
            (results, columns): vocabulary, labels, or the hidden size for the bare model.

        Raises:
            ConfigError: the model does not have these ids or rows.
        """
        sequences = token_sequences(input_ids)
        for ids in sequences:
            self.check_ids(ids)
            check_last(self.config, ids)
        rows = default_rows(self.config) if rows is None else rows
        kinds = None if types is None else tuple(token_ids(types, "types"))
        batch = Batch(tuple(len(ids) for ids in sequences), rows, kinds)
        check_types(self.config, batch)
        async with self._busy:
            self._check_running()
            joined = [token for ids in sequences for token in ids]
            self.usage = Usage(prompt_ids=joined)
            started = time.perf_counter()
            inference = await self._begin(replace(self.settings, reveal="logits"), batch)
            try:
                result = await self._step(inference, joined)
                await self.client.wait_reports(inference)
            finally:
                await self._finish(inference)
            self.usage.seconds["prefill"] = time.perf_counter() - started
            return result

    async def log_likelihoods(self, ids: Sequence[int]) -> Floats:
        """Natural logarithm of a language model's probability for each token except the first,
        given those before it: (len(ids) - 1,).

        Raises:
            ConfigError: the model predicts no tokens, or ids as for `forward`.
        """
        check_logits(self.config)
        found = token_ids(ids)
        return log_likelihoods(await self.forward([found], rows="all"), found)

    def _check_running(self) -> None:
        if not self.running:
            raise ConfigError("the cluster is not running: use `async with`")

    def encode(
        self, prompt: Prompt | None, *, raw: bool = False, **options: Unpack[ChatOptions]
    ) -> list[int]:
        """Token ids of a prompt: a text or a chat through the chat template, a text unchanged if
        `raw`, ids as they are.

        Raises:
            ConfigError: the prompt is empty or of another kind, options that are of no use to it,
                or a text or chat was given to a model without a tokenizer.
            ModelError: the chat template rejects the chat.
        """
        ids = encode_prompt(self.tokenizer, prompt, raw=raw, missing=self.no_tokenizer, **options)
        self.check_ids(ids)
        return ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text of any length, with the begin token if the tokenizer adds one.

        Raises:
            ConfigError: the model has no tokenizer.
        """
        if not isinstance(text, str):
            raise ConfigError(f"a text is {type(text).__name__}: give a string")
        if self.tokenizer is None:
            raise ConfigError(f"no tokenizer, so only token ids can be given ({self.no_tokenizer})")
        return self.tokenizer.encode(text)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Check ids as the module's `check_ids` does, for this model."""
        check_ids(self.config, ids)

    def check_sampling(self, sampling: SamplingConfig) -> None:
        """Check that the model generates text, and that sampling needs no hidden logits.

        Raises:
            ConfigError: one of these does not hold.
        """
        check_sampling(self.config, sampling, secret=self.settings.reveal == "argmax")

    def find_draft(self, options: DraftOptions) -> tuple[Drafting | None, int]:
        """What drafts answers, and the most tokens it proposes a step; see `Drafts.find`."""
        return self._drafts.find(options, self.tokenizer, self.config.vocab_size)

    def of_model(self, options: SamplingOptions) -> dict[str, Any]:
        """The model's own sampling settings, by field of a `SamplingConfig`, for options that were
        not given. See `models.tokens.sampling_config.settings_of_model`.
        """
        return settings_of_model(self.config.generation, options)

    def sampling(self, options: GenerateOptions, prompt: int = 0) -> SamplingConfig:
        """The given options, completed by the model's own settings.

        prompt: its number of tokens, for `max_length`. Raises ConfigError for an unknown option, an
        unusable value, or settings that are not supported.
        """
        return chosen_sampling(self.config, None, options, prompt)[0]

    async def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingConfig | None = None,
        *,
        raw: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> AsyncGenerator[Token, None]:
        """Stream tokens. `usage` holds the cost, updated after every token. If more tokens are
        requested than fit, locally or at remote parties, the answer ends when the context is full.

        Args:
            prompt: text, a chat (messages with "role" and "content"), or token ids.
            sampling: used unchanged. Options can be given as keywords instead
                (`max_new_tokens=32`, `temperature=0.7`, ...); the model's own settings then fill in
                the rest.
            raw: do not apply the chat template.
            options: see `models.texts.requested.GenerateOptions`. Those of a draft go with
                `sampling`, too.

        Raises:
            ConfigError: an unusable prompt, or an option that is not supported or not known.
        """
        chat, draft, rest = split_options(options)
        check_draft(draft)
        chosen_sampling(self.config, sampling, rest, 0)  # a wrong name before a wrong prompt
        ids = self.encode(prompt, raw=raw, **chat)
        chosen, ends = chosen_sampling(self.config, sampling, rest, len(ids))
        self.check_sampling(chosen)
        drafting = await anyio.to_thread.run_sync(self.find_draft, draft)
        async with self._busy, aclosing(self._tokens(ids, chosen, ends, *drafting)) as tokens:
            async for token in tokens:
                yield token

    async def _tokens(
        self,
        ids: list[int],
        sampling: SamplingConfig,
        ends: set[int] | None,
        drafting: Drafting | None,
        most: int,
    ) -> AsyncGenerator[Token, None]:
        self._check_running()
        usage = self.usage = Usage(prompt_ids=ids, draft=drafting.name if drafting else "none")
        # Request at least one, so that a prompt that does not fit is refused with a clear message.
        steps = min(sampling.max_new_tokens, max(1, self.most_new_tokens(len(ids))))
        ends = ends_of(self.plan.config, self.tokenizer) if ends is None else ends
        batch = Batch((len(ids),), "last")
        inference = await self._begin(self.settings, batch, steps, most)
        text = AnswerText(self.tokenizer, sampling.stop)
        try:
            costs = await self._draft_costs(batch, steps, most) if drafting else ()
            secret = self.settings.reveal == "argmax"
            answer = Answer(ids, sampling, ends, secret=secret, drafting=drafting, costs=costs)
            while not usage.stop_reason:
                for token in answer.chosen(await self._next(inference, answer)):
                    usage.took(token, answer.accepted)
                    if token in ends:
                        usage.stop_reason = "end of text"
                        break
                    yield Token(token, text.push(token), answer.logits)
                    if text.stopped:
                        usage.stop_reason = "stop string"
                        break
                if not usage.stop_reason and len(usage.token_ids) == steps:
                    full = steps == sampling.max_new_tokens
                    usage.stop_reason = "length" if full else "context"
            if rest := text.finish():
                yield Token(None, rest)
        finally:
            await self._finish(inference)

    async def _next(self, inference: Inference, answer: Answer) -> Floats:
        """Take the next step of an answer, and count it."""
        usage, started = self.usage, time.perf_counter()
        if inference.taken == 0:
            phase, result = "prefill", await self._step(inference, answer.text)
        else:
            phase, accepted = "decode", answer.accepted
            given = await answer.next(inference.steps - len(usage.token_ids))
            result = await self._step(inference, given, accepted)
            usage.drafts.append(Drafted(answer.proposed, 0))
        spent = time.perf_counter() - started
        usage.seconds[phase] = usage.seconds.get(phase, 0.0) + spent
        usage.steps, usage.prepared = inference.known_costs, len(inference.prepared)
        return result

    def most_new_tokens(self, prompt: int) -> int:
        """New tokens that fit after a prompt of `prompt` tokens, by the model's positions and the
        parties' limit. Requests for more get this many.
        """
        positions, tokens = self.config.max_positions, self.client.tokens
        return (positions if tokens is None else min(positions, tokens)) - prompt + 1

    def limit_text(self) -> str:
        """Describe the limit behind `most_new_tokens`."""
        positions, tokens = self.config.max_positions, self.client.tokens
        if tokens is not None and tokens < positions:
            return f"the parties take {tokens} tokens at a time (limits.inference_tokens)"
        return f"the model has {positions} positions"

    async def _begin(
        self, wished: RequestSettings, batch: Batch, steps: int = 1, draft: int = 0
    ) -> Inference:
        # Most steps with a draft propose no token or few.
        choice = await anyio.to_thread.run_sync(self.choose, batch, steps, min(1, draft), wished)
        self.usage.settings = choice.settings
        return await self.client.begin(batch, steps, choice.settings, draft)

    async def _draft_costs(self, batch: Batch, steps: int, most: int) -> tuple[int, ...]:
        """How much longer steps of the running request take with a draft, as `Pace` wants it."""
        chooser = self._chooser or Chooser(self.plan, self.route, apart=self.apart)
        further = self.usage.settings.further
        return await anyio.to_thread.run_sync(chooser.lengthened, batch, steps, further, most)

    async def _step(self, inference: Inference, ids: Sequence[int], accepted: int = 0) -> Floats:
        taken, settings = inference.taken, inference.settings.at(inference.taken)
        place = inference.number + taken, inference.batch, inference.steps, taken
        self.step = Step(*place, settings, time.monotonic())
        try:
            return await self.client.step(inference, ids, accepted)
        finally:
            self.step = None

    async def _finish(self, inference: Inference) -> None:
        """End an inference, unless the session is broken anyway; keep the final costs."""
        with suppress(PumaError):
            await self.client.end(inference)
        self.usage.steps = inference.known_costs
        self.usage.prepared = len(inference.prepared)
