"""Clients of a gateway that stream answers, and what they see, in the words of `vllm bench serve`:
TTFT (time to first token), TPOT (time per output token after it), ITL (time between two tokens) and
E2EL (the whole request).
"""

import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import anyio
import httpx2 as httpx

Outcome = Literal["right", "wrong", "refused", "left", "broken"]
"""The right answer; another one; an error in OpenAI's form; this client hung up; neither an answer
nor a reason.
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and its right answer. `prompt`: a text, or token ids."""

    prompt: str | Sequence[int]
    tokens: int
    answer: str


@dataclass(slots=True)
class Seen:
    """What a client saw of one request. Times are those of `time.perf_counter`."""

    began: float
    times: list[float] = field(default_factory=list)  # of each token
    ended: float = 0.0
    outcome: Outcome = "broken"
    reason: str = ""

    @property
    def ttft(self) -> list[float]:
        """One, unless there was no token."""
        return [self.times[0] - self.began] if self.times else []

    @property
    def itl(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]

    @property
    def tpot(self) -> list[float]:
        gaps = self.itl
        return [sum(gaps) / len(gaps)] if gaps else []

    @property
    def e2el(self) -> list[float]:
        return [self.ended - self.began] if self.outcome == "right" else []


async def ask(http: httpx.AsyncClient, model: str, given: Ask, leave: int | None = None) -> Seen:
    """Ask, greedily. `leave`: hang up after so many tokens; 0: as soon as the request is taken."""
    seen, text = Seen(time.perf_counter()), ""
    body = {
        "model": model,
        "prompt": given.prompt,
        "max_tokens": given.tokens,
        "temperature": 0,
        "logprobs": 0,  # so that every token makes a chunk, even if it completes no character
        "stream": True,
    }
    try:
        async with http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                return _refused(seen, response.json())
            async with aclosing(response.aiter_lines()) as lines:
                async for line in lines:
                    if line == "data: [DONE]":
                        seen.ended = time.perf_counter()
                        seen.outcome = "right" if text == given.answer else "wrong"
                        return seen
                    event = json.loads(line[6:]) if line.startswith("data: ") else {}
                    if "error" in event:
                        return _refused(seen, event)
                    text += _take(seen, event)
                    if leave is not None and len(seen.times) >= leave:
                        seen.outcome = "left"
                        return seen
        seen.reason = "cut off"
    except httpx.TransportError as error:
        seen.reason = type(error).__name__
    return seen


def _refused(seen: Seen, body: dict[str, Any]) -> Seen:
    error = body["error"]
    seen.outcome, seen.reason = "refused", str(error["code"] or error["message"])
    return seen


def _take(seen: Seen, event: dict[str, Any]) -> str:
    """The text of an event; notes when a token came."""
    text = ""
    for choice in event.get("choices", ()):
        text += choice["text"]
        if choice["logprobs"] and choice["logprobs"]["tokens"]:
            seen.times.append(time.perf_counter())
    return text


async def load(
    connect: Callable[[], httpx.AsyncClient],
    model: str,
    asks: Sequence[Ask],
    clients: int,
    goes_on: Callable[[int], bool],
    *,
    leaving: float = 0.0,
    halfway: Callable[[], Awaitable[None]] | None = None,
    half: float | None = None,
    pause: float = 0.0,
    seed: int = 1,
) -> tuple[list[Seen], float]:
    """Let clients ask at the same time, each one request after another.

    Args:
        goes_on: whether a client asks once more, by how often it has asked.
        leaving: the fraction of requests whose client hangs up, after any number of tokens.
        pause: seconds that a client waits after a refusal.
        halfway: called in the middle: after `half` seconds, or, if it is None, when half of the
            clients have had their first answer.

    Returns:
        What was seen, and the seconds that all took.
    """
    seen: list[Seen] = []
    middle_reached, served = anyio.Event(), set[int]()

    async def client(number: int) -> None:
        coins = random.Random(f"{seed}, {number}")
        async with connect() as http:
            for count in _while(goes_on):
                given = asks[(number + count) % len(asks)]
                leave = coins.randint(0, given.tokens) if coins.random() < leaving else None
                found = await ask(http, model, given, leave)
                seen.append(found)
                served.add(number)
                if 2 * len(served) >= clients:
                    middle_reached.set()
                if found.outcome == "refused":
                    await anyio.sleep(pause)

    async def middle() -> None:
        if halfway is None:
            return
        if half is None:
            await middle_reached.wait()
        else:
            await anyio.sleep(half)
        await halfway()

    began = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(clients):
            group.start_soon(partial(client, number))
        group.start_soon(middle)
    return seen, time.perf_counter() - began


def _while(goes_on: Callable[[int], bool]) -> Iterator[int]:
    count = 0
    while goes_on(count):
        yield count
        count += 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median and 99th percentile, in seconds."""

    mean: float
    median: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if not values:
            return cls(0.0, 0.0, 0.0)
        ordered = sorted(values)
        last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return cls(statistics.fmean(ordered), statistics.median(ordered), last)

    def __str__(self) -> str:
        return f"{self.mean:.2f} / {self.median:.2f} / {self.p99:.2f}"


@dataclass(frozen=True, slots=True)
class Summary:
    """What all clients saw. `refusals`: those by their reason."""

    clients: int
    seconds: float
    outcomes: dict[str, int]
    refusals: dict[str, int]
    tokens: int
    ttft: Spread
    tpot: Spread
    itl: Spread
    e2el: Spread

    @classmethod
    def of(cls, clients: int, seen: Sequence[Seen], seconds: float) -> "Summary":
        def spread(name: str) -> Spread:
            return Spread.of([value for each in seen for value in getattr(each, name)])

        return cls(
            clients,
            seconds,
            dict(Counter(each.outcome for each in seen)),
            dict(Counter(each.reason for each in seen if each.outcome == "refused")),
            sum(len(each.times) for each in seen),
            *(spread(name) for name in ("ttft", "tpot", "itl", "e2el")),
        )

    @property
    def rate(self) -> float:
        """Tokens a second, of all clients together."""
        return self.tokens / self.seconds
