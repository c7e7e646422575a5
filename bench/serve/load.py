"""Clients of a gateway over five processes, that stream at the same time. Every answer is compared
with one that this process computes alone.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anyio

from bench.serve.clients import Ask, Seen, Summary, load
from bench.serve.running import MODEL, Running, running
from bench.serve.small import clear_asks, save_small
from bench.serve.states import State, States
from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from protocols.base.shares import Role
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster

_NAME, _ROUGH = "serve.load", "serve.rough"
_PROMPTS = (
    "The sea is",
    "A short list of fruits: apple,",
    "The capital of France is",
    "Once upon a time there was a",
)
_CLIENTS = (1, 2, 4, 16)
_ASKS = 12
"""Different requests of a rough load."""
_PAUSE = 1.0
"""Seconds before a client asks again after a refusal."""
_LOOK = 15.0
"""Seconds between two looks at the processes."""
_QUIET = 300.0
"""Seconds after the load until the gateway has closed the sessions that it needs no more."""
_REASONS = ("busy", "party_lost")
"""Why a gateway may refuse: any other reason is a fault."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A load.

    Attributes:
        model: a folder; None: a small generated model, with requests of many lengths.
        clients: numbers of clients, one load each. requests: of each client.
        seconds: if given, clients ask until these are over instead.
        tokens: of each answer at most; the small model's requests have lengths of their own.
        network: emulated between all, as for `--network`.
        leaving: the fraction of requests whose client hangs up. restart: kill a party in the middle
            of each load, and start it again.
    """

    model: Path | None
    clients: Sequence[int] = _CLIENTS
    requests: int = 2
    seconds: float | None = None
    tokens: int = 8
    at_once: int = 4
    network: str = ""
    leaving: float = 0.0
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A load, and what the processes held before, in its middle, at most, and after it.

    Attributes:
        memory: bytes of each process as the load went on, by `seconds` since its begin.
    """

    summary: Summary
    seen: list[Seen]
    states: Mapping[str, States]
    memory: list[dict[str, float]]


async def right_answers(model: Path, tokens: int) -> list[Ask]:
    """The prompts, and what this process answers to them alone."""
    asks = []
    async with LocalCluster.from_pretrained(model) as cluster:
        for prompt in _PROMPTS:
            answer = cluster.generate(prompt, raw=True, max_new_tokens=tokens, temperature=0.0)
            asks.append(Ask(prompt, tokens, "".join([token.text async for token in answer])))
    return asks


def run(wanted: Wanted, name: str) -> Iterator[Result]:
    """Raises PumaError: an answer was wrong, or a client got neither an answer nor a reason."""
    settings = {"PUMA_CLUSTER__NETWORK": wanted.network} if wanted.network else {}
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        if wanted.model is None:
            model = Path(folder) / "model"
            model.mkdir()
            asks = anyio.run(clear_asks, save_small(model), _ASKS)
        else:
            model = wanted.model
            asks = anyio.run(right_answers, model, wanted.tokens)
        with running(Path(folder), model, wanted.at_once, settings) as live:
            loads = anyio.run(_loads, wanted, live, asks)
    first = loads[0].summary
    one = first.rate if first.clients == 1 else 0.0
    for found in loads:
        yield from _results(name, wanted, found, one)
        _check(found.seen)


async def _loads(wanted: Wanted, live: Running, asks: list[Ask]) -> list[Found]:
    found = []
    for clients in wanted.clients:
        if wanted.seconds is not None:  # a long load: it must leave everything as it was
            _check(await _alone(live, asks))
        found.append(await _one_load(wanted, live, asks, clients))
        if wanted.seconds is not None:
            _check(await _alone(live, asks))
    return found


async def _alone(live: Running, asks: Sequence[Ask]) -> list[Seen]:
    """Each request by itself: there is nothing else that it could wait for, or take part in."""
    count = len(asks)
    seen, _ = await load(live.address.client, MODEL, asks, 1, lambda asked: asked < count)
    refused = [each.reason for each in seen if each.outcome == "refused"]
    if refused:
        raise PumaError(f"{len(refused)} of {count} requests were refused alone: {refused[0]}")
    return seen


async def _one_load(wanted: Wanted, live: Running, asks: list[Ask], clients: int) -> Found:
    await live.quiet(_QUIET)
    looks, began = [await live.states()], time.monotonic()
    middle: list[States] = []
    memory: list[dict[str, float]] = []

    async def look() -> None:
        while True:
            await anyio.sleep(_LOOK)
            looks.append(now := await live.states())
            held = {name: float(state.memory) for name, state in now.items()}
            memory.append({"seconds": time.monotonic() - began, **held})

    async def halfway() -> None:
        middle.append(await live.states())
        if wanted.restart:
            await live.restart(Role.EVALUATOR_A)

    async with anyio.create_task_group() as group:
        group.start_soon(look)
        seen, seconds = await load(
            live.address.client,
            MODEL,
            asks,
            clients,
            _goes_on(wanted),
            leaving=wanted.leaving,
            halfway=halfway,
            half=None if wanted.seconds is None else wanted.seconds / 2,
            pause=_PAUSE,
        )
        group.cancel_scope.cancel()
    await live.quiet(_QUIET)
    looks += [*middle, after := await live.states()]
    states = {"start": looks[0], "middle": middle[0], "most": _most(looks), "end": after}
    return Found(Summary.of(clients, seen, seconds), seen, states, memory)


def _goes_on(wanted: Wanted) -> Callable[[int], bool]:
    if wanted.seconds is None:
        return lambda count: count < wanted.requests
    end = time.monotonic() + wanted.seconds
    return lambda count: time.monotonic() < end


def _most(looks: Sequence[States]) -> States:
    """Of each process and each number, the largest."""
    found: dict[str, State] = {}
    for name in looks[0]:
        each = [look[name] for look in looks if name in look]
        numbers = ([getattr(state, of) for state in each] for of in State.__slots__)
        found[name] = State(*map(max, numbers))
    return found


def _check(seen: Sequence[Seen]) -> None:
    bad = [
        each
        for each in seen
        if each.outcome in ("wrong", "broken")
        or (each.outcome == "refused" and each.reason not in _REASONS)
    ]
    if bad:
        said = ", ".join(sorted({f"{each.outcome} {each.reason}".strip() for each in bad}))
        raise PumaError(f"{len(bad)} of {len(seen)} requests: {said}")


def _results(name: str, wanted: Wanted, found: Found, one: float) -> Iterator[Result]:
    summary = found.summary
    case = f"{summary.clients} clients{f', {wanted.network}' if wanted.network else ''}"
    times = (
        f"{title} {getattr(summary, title.lower())}" for title in ("TTFT", "TPOT", "ITL", "E2EL")
    )
    outcomes = ", ".join(f"{count} {what}" for what, count in summary.outcomes.items())
    if summary.refusals:
        reasons = (f"{count} {what}" for what, count in summary.refusals.items())
        outcomes += f" ({', '.join(reasons)})"
    ratio = summary.rate / one if one else 0.0
    share = f"{ratio:.2f} of one client; " if ratio else ""
    states = {
        when: {who: asdict(state) for who, state in each.items()}
        for when, each in found.states.items()
    }
    details: dict[str, Any] = {
        **asdict(summary),
        "ratio": ratio,
        "states": states,
        "memory": found.memory,
        "wanted": {**asdict(wanted), "model": wanted.model.name if wanted.model else "small"},
    }
    yield Result(
        name,
        case,
        Spread.of([summary.seconds]),
        summary.tokens,
        "tokens",
        note=f"{share}{outcomes}; mean / median / p99 s: {'; '.join(times)}",
        details=details,
    )
    for who in found.states["start"]:
        looks = (f"{when}: {each[who]}" for when, each in found.states.items() if who in each)
        yield Result(name, f"{case}, {who}", note="; ".join(looks))


def _load(options: Options) -> Iterator[Result]:
    wanted = Wanted(demo_model_path(), requests=options.runs(2))
    if options.quick:
        wanted = replace(wanted, model=None, clients=(1, 2), requests=2)
    yield from run(wanted, _NAME)


def _rough(options: Options) -> Iterator[Result]:
    wanted = Wanted(None, (16,), seconds=600.0, leaving=0.2, restart=True)
    if options.quick:
        wanted = replace(wanted, clients=(4,), seconds=20.0)
    yield from run(wanted, _ROUGH)


BENCHMARKS = [
    Benchmark(_NAME, "1 to 16 streaming clients of a gateway over five processes", _load, False),
    Benchmark(_ROUGH, "16 for ten minutes: some hang up, and a party restarts", _rough, False),
]
