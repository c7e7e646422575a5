"""`/v1/chat/completions` and `/v1/completions`."""

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from models.programs.program import Batch
from models.texts.requested import GenerateOptions
from models.tokens.chat_template import ChatOptions
from models.tokens.tokenizer import Tokenizer
from protocols.base.cost import Cost
from puma_actors.api.life import Cluster
from puma_actors.api.usage import Token, Usage
from puma_actors.serve.answers import ChatForm, CompletionForm, Form, finish_reason
from puma_actors.serve.asked import ChatAsked, CompletionAsked, read
from puma_actors.serve.counting.meter import Meter, reason_of
from puma_actors.serve.errors import BAD, ApiError
from puma_actors.serve.facts import Models
from puma_actors.serve.pace import ROUGH, check_patience, predicted, predicted_headers
from puma_actors.serve.served import Served
from puma_actors.serve.streams import Emit, EventStream, Gone, unless_gone
from puma_actors.serve.turns.places import Place, check_plan


class Job:
    """A request that has been checked and can be computed.

    Args:
        plan: the digest of the plan that it was checked for.
        ids: the prompt. cost: what it may cost at most, for all parties together. rounds: those of
            the prompt.
        seconds: what it is expected to take; None: nothing is known yet.
    """

    def __init__(
        self,
        served: Served,
        plan: str,
        ids: list[int],
        options: GenerateOptions,
        cost: Cost,
        rounds: int,
        seconds: float | None,
    ) -> None:
        self.cost = cost
        self._rounds = rounds
        self.seconds = seconds
        self._served = served
        self._plan = plan
        self._ids = ids
        self._options = options
        self._place: Place | None = None

    async def answer(self, take: Callable[[Token], Awaitable[None]], meter: Meter) -> Usage:
        """Wait for its turn, and compute the answer.

        Raises:
            PumaError: it cannot be computed, or a party is lost.
        """
        self._place = place = self._served.queue()
        counted = meter.came(self._served.name)

        async def work(cluster: Cluster) -> Usage:
            counted.called()
            check_plan(cluster, self._plan)
            before, tokens = cluster.usage, cluster.generate(self._ids, **self._options)
            try:
                async with aclosing(tokens):
                    with counted.exchanging(cluster):
                        async for token in tokens:
                            place.begun = True
                            counted.took(token)
                            await take(token)
            finally:
                if cluster.usage is not before:
                    counted.cost(cluster.usage)
            return cluster.usage

        with counted.watching():
            usage = await self._served.compute(place, work)
        counted.answered(finish_reason(usage))
        self._served.pace.note(usage)
        return usage

    def told(self) -> dict[str, str]:
        """Headers that say beforehand what the request may cost."""
        return predicted_headers(self.cost, self.seconds)

    def status(self) -> str:
        """What the request is doing."""
        if self._place is None:
            return "waiting"
        if self._place.cluster is not None:
            return self._progress(self._place.cluster)
        return f"waiting, {self._served.ahead_of(self._place)} before you"

    def _progress(self, cluster: Cluster) -> str:
        step, done = cluster.step, cluster.rounds_done()
        if step is None or step.index or done is None:
            return "computing"
        done, layers = min(done, self._rounds), cluster.config.num_layers
        # All layers take the same rounds, and what comes before and after them takes few.
        layer = min(layers, 1 + done * layers // max(1, self._rounds))
        return f"prefill {done}/{self._rounds} layer {layer}/{layers}"


async def chat(request: Request, models: Models) -> Response:
    """`POST /v1/chat/completions`."""
    asked = read(ChatAsked, await request.body())
    model = models.find(asked.model)
    cluster = model.cluster()
    options: ChatOptions = {}
    if asked.chat_template_kwargs is not None:
        options["template_args"] = asked.chat_template_kwargs
    messages = [message.plain() for message in asked.messages]
    # On a thread: a long text takes seconds, and so may a template.
    ids = await anyio.to_thread.run_sync(partial(cluster.encode, messages, **options))
    form = ChatForm(*_named(model, cluster), asked.shown_logprobs)
    job = await _job(request, model, ids, asked)
    return await _respond(request, job, asked, form, models.meter)


async def completions(request: Request, models: Models) -> Response:
    """`POST /v1/completions`."""
    asked = read(CompletionAsked, await request.body())
    model = models.find(asked.model)
    cluster = model.cluster()
    prompt = asked.prompt
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        prompt = prompt[0]
    encode = partial(cluster.encode, prompt, raw=True)  # type: ignore[arg-type]
    ids = await anyio.to_thread.run_sync(encode)
    form = CompletionForm(*_named(model, cluster), asked.shown_logprobs)
    job = await _job(request, model, ids, asked)
    return await _respond(request, job, asked, form, models.meter)


def _named(served: Served, cluster: Cluster) -> tuple[str, str, Tokenizer | None]:
    return served.name, f"puma-{cluster.plan.digest()[:16]}", cluster.tokenizer


async def _job(
    request: Request, served: Served, ids: list[int], asked: ChatAsked | CompletionAsked
) -> Job:
    """Check a request before anything is sent.

    Raises:
        ApiError: the prompt leaves no room for an answer, or the client does not wait as long as
            the answer is expected to take. PumaError: an option is unusable.
    """
    cluster, options = served.cluster(), asked.options()
    room = cluster.most_new_tokens(len(ids))
    if room < 1:
        raise ApiError(
            BAD,
            f"the prompt has {len(ids)} tokens, {1 - room} too many: {cluster.limit_text()}",
            param="messages" if isinstance(asked, ChatAsked) else "prompt",
            code="context_length_exceeded",
        )
    cluster.check_sampling(cluster.sampling(options, len(ids)))
    if asked.shown_logprobs is not None and cluster.settings.reveal == "argmax":
        raise ApiError(BAD, "logprobs: the parties reveal only the best token", param="logprobs")
    new = min(asked.wanted, room)
    # On a thread: of a long prompt it takes a second.
    batch = Batch((len(ids),), "last")
    first, later, rough = await anyio.to_thread.run_sync(predicted, cluster, batch, new)
    cost = sum(later * (new - 1), first)
    known = served.pace.seconds(len(ids), new)
    if not asked.stream:
        check_patience(request, rough / ROUGH if known is None else known)
    seconds = known or rough or None
    return Job(served, cluster.plan.digest(), ids, options, cost, first.rounds, seconds)


async def _respond(
    request: Request, job: Job, asked: ChatAsked | CompletionAsked, form: Form, meter: Meter
) -> Response:
    if asked.stream:
        produce = partial(_stream, job=job, form=form, meter=meter, usage=asked.tells_usage)
        return EventStream(produce, job.status, job.told())

    async def whole() -> Usage:
        async def take(token: Token) -> None:
            form.add(token)

        return await job.answer(take, meter)

    try:
        usage = await unless_gone(request.receive, whole)
    except Gone:
        return Response(status_code=499)
    return JSONResponse(form.whole(usage), headers=job.told())


async def _stream(emit: Emit, *, job: Job, form: Form, meter: Meter, usage: bool) -> None:
    async def take(token: Token) -> None:
        form.add(token)
        if token.text or form.fresh:
            await emit(form.chunk(token.text))

    try:
        found = await job.answer(take, meter)
    except Exception as error:  # the response has begun: nobody else counts it
        meter.refused(reason_of(error))
        raise
    await emit(form.last(found))
    if usage:
        await emit(form.usage(found))
