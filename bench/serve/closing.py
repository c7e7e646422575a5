"""Seconds from closing a stream until the last party has stopped: while the prompt is read, and
between two tokens. Each party logs when a request has ended and a step was given up; how much
processor time it uses after that is looked at too.
"""

import json
import random
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench.serve.running import MODEL, SECONDS, Running, running
from bench.serve.small import save_small
from bench.serve.states import processor_seconds
from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError

WANTED = 1.0
"""Seconds."""
_NAME = "serve.closing"
_WHEN = ("in the prompt", "in a step")
_TOKENS = 32
_LOOK = 3.0
"""Seconds for which nothing may happen at any party."""
_POLL = 0.01
_EVENTS = ("request ended", "step done", "joint step done", "joint step dropped")


@dataclass(frozen=True, slots=True)
class Stopped:
    """One party, after one stream was closed.

    Attributes:
        seconds: from closing it to the last event of a request or a step.
        busy: processor seconds after that, within the look.
        events: what it logged.
    """

    seconds: float
    busy: float
    events: list[str]


Stops = dict[str, Stopped]
"""By party."""


class Closing:
    """A client that closes its streams.

    Args:
        live: the gateway and the parties. prompt: tokens. seed: of the moments.
    """

    def __init__(self, live: Running, prompt: int, seed: int = 1) -> None:
        self._live = live
        self._coins = random.Random(seed)
        self._prompt = [self._coins.randint(1, 100) for _ in range(prompt)]
        self._prefill = self._step = 0.0

    async def learn(self) -> None:
        """Stream one answer, to know how long a prompt and a step take."""
        began, times = anyio.current_time(), list[float]()
        async with self._stream() as lines:
            async for _ in lines:
                times.append(anyio.current_time())
                if len(times) == 3:  # the first joint step may wait for the dealer
                    break
        self._prefill, self._step = times[0] - began, times[2] - times[1]
        await self._idle()

    async def close(self, when: str) -> Stops:
        """Close a stream at some moment, and wait until all parties have stopped.

        Raises:
            PumaError: one does not stop.
        """
        before = {role: len(self._events(role)) for role in COMPUTING}
        async with self._stream() as lines:
            if when == _WHEN[0]:
                while await self._live.address.numbers("num_requests_running") != [1]:
                    await anyio.sleep(_POLL)
                await anyio.sleep(self._coins.uniform(0.1, 0.6) * self._prefill)
            else:
                await anext(lines)
                await anext(lines)
                await anyio.sleep(self._coins.uniform(0.1, 0.8) * self._step)
            closed = datetime.now(UTC)
        used = await self._idle()
        return {
            str(role): _stopped(closed, self._events(role)[before[role] :], used[str(role)])
            for role in COMPUTING
        }

    @asynccontextmanager
    async def _stream(self) -> AsyncIterator[AsyncIterator[str]]:
        """A stream, and the lines of its tokens."""
        body = {
            "model": MODEL,
            "prompt": self._prompt,
            "max_tokens": _TOKENS,
            "ignore_eos": True,
            "logprobs": 0,  # so that every token makes a chunk
            "stream": True,
        }
        address = self._live.address
        async with address.client() as http, http.stream("POST", "/v1/completions", json=body) as r:
            if r.status_code != httpx.codes.OK:
                raise PumaError(f"refused: {(await r.aread()).decode()}")
            yield (line async for line in r.aiter_lines() if line.startswith("data: "))

    async def _idle(self) -> dict[str, list[tuple[datetime, float]]]:
        """Wait until no party says anything for `_LOOK`; the processor time of each till then."""
        used: dict[str, list[tuple[datetime, float]]] = {str(role): [] for role in COMPUTING}
        seen, since = -1, anyio.current_time()
        limit = since + SECONDS
        while anyio.current_time() - since < _LOOK or await self._running():
            for name, each in used.items():
                each.append((datetime.now(UTC), processor_seconds(self._live.pids[name])))
            if (count := sum(len(self._events(role)) for role in COMPUTING)) != seen:
                seen, since = count, anyio.current_time()
            if since > limit:
                raise PumaError(f"the parties have not stopped within {SECONDS:g} s")
            await anyio.sleep(_POLL)
        return used

    async def _running(self) -> bool:
        return await self._live.address.numbers("num_requests_running") != [0]

    def _events(self, role: Role) -> list[tuple[datetime, str]]:
        whole, _, _ = self._live.log(role).read_text().rpartition("\n")
        said = [json.loads(line) for line in whole.splitlines()]
        return [
            (datetime.fromisoformat(each["timestamp"]), each["event"])
            for each in said
            if each["event"] in _EVENTS and each["role"] == role
        ]


def _stopped(
    closed: datetime, events: list[tuple[datetime, str]], used: list[tuple[datetime, float]]
) -> Stopped:
    after = [(time, event) for time, event in events if time >= closed]
    last = max((time for time, _ in after), default=closed)
    later = [seconds for time, seconds in used if time >= last]
    busy = later[-1] - later[0] if later else 0.0
    return Stopped((last - closed).total_seconds(), busy, [event for _, event in after])


async def measure(live: Running, prompt: int, runs: int) -> dict[str, list[Stops]]:
    """By when streams were closed, what each party did."""
    client = Closing(live, prompt)
    await client.learn()
    return {when: [await client.close(when) for _ in range(runs)] for when in _WHEN}


def _results(network: str, found: dict[str, list[Stops]], prompt: int) -> Iterator[Result]:
    for when, stops in found.items():
        last = [max(each.seconds for each in stop.values()) for stop in stops]
        by_party = ", ".join(
            f"{role} {max(stop[role].seconds for stop in stops):.2f}" for role in stops[0]
        )
        busy = max(each.busy for stop in stops for each in stop.values())
        details: dict[str, Any] = {
            "wanted": WANTED,
            "network": network,
            "prompt_tokens": prompt,
            "stops": [{role: asdict(each) for role, each in stop.items()} for stop in stops],
        }
        yield Result(
            _NAME,
            f"closed {when}{f', {network}' if network else ''}",
            Spread.of(last),
            note=f"slowest s: {by_party}; {WANTED:g} wanted; processor after it: {busy:.2f} s",
            details=details,
        )


def run(model: Path | None, networks: Sequence[str], prompt: int, runs: int) -> Iterator[Result]:
    """Args:
    model: a folder; None: a small generated model. networks: emulated; "" for none.
    prompt: its tokens. runs: for each moment.

    Raises:
        PumaError: something did not start, was refused, or did not stop.
    """
    for network in networks:
        settings = {"PUMA_CLUSTER__NETWORK": network} if network else {}
        with tempfile.TemporaryDirectory(prefix="puma-") as folder:
            path = model
            if path is None:
                path = Path(folder) / "model"
                path.mkdir()
                save_small(path)
            with running(Path(folder), path, 1, settings) as live:
                found = anyio.run(measure, live, prompt, runs)
        yield from _results(network, found, prompt)


def _closing(options: Options) -> Iterator[Result]:
    if options.quick:
        yield from run(None, ("40ms",), 8, options.runs(1))
    else:
        yield from run(demo_model_path(), ("", "wan"), 32, options.runs(3))


BENCHMARKS = [
    Benchmark(_NAME, "from closing a stream until the last party has stopped", _closing, False)
]
