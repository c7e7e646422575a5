"""A gateway over three parties, all processes of their own with TLS between them, and 1 to 16
clients that stream at the same time. Every answer is compared with one that this process computes
alone.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import httpx2 as httpx

from bench.runtime.hosts import PUMA, parties, puma, start_party, wait_for_links, write_cluster
from bench.serve.clients import Ask, Seen, Summary, load
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
_MODEL = "model"
_SECONDS, _PAUSE = 600.0, 1.0
"""How long a client waits at most; and before it asks again after a refusal."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A load.

    Attributes:
        clients: numbers of clients, one load each. requests: of each client.
        seconds: if given, clients ask until these are over instead.
        tokens: of each answer at most. network: emulated between all, as for `--network`.
        leaving: the fraction of requests whose client hangs up. restart: kill a party in the middle
            of each load, and start it again.
    """

    model: Path
    clients: Sequence[int] = _CLIENTS
    requests: int = 2
    seconds: float | None = None
    tokens: int = 8
    at_once: int = 4
    network: str = ""
    leaving: float = 0.0
    restart: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """Where a gateway is."""

    base: str
    key: str

    def client(self) -> httpx.AsyncClient:
        """A client of it, with a connection of its own."""
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.AsyncClient(base_url=self.base, headers=headers, timeout=_SECONDS)

    async def state(self) -> tuple[int, int]:
        """Bytes of the gateway's memory, and tasks of its event loop."""
        async with self.client() as http:
            text = (await http.get("/metrics")).text
        found = (
            re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
            for name in ("process_resident_memory_bytes", "puma_tasks")
        )
        memory, tasks = (int(float(each[1])) if each else 0 for each in found)
        return memory, tasks


@contextmanager
def gateway(config: Path, at_once: int, environment: dict[str, str]) -> Iterator[Address]:
    """A `puma serve` process on a free port."""
    state = config.parent / "state"
    options = ["--cluster", str(config), "--model", _MODEL, "--at-once", str(at_once)]
    with (config.parent / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [*PUMA, "serve", *options, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**environment, "XDG_STATE_HOME": str(state)},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise PumaError(f"the gateway did not start: {Path(log.name).read_text()[-500:]}")
        told = json.loads(line)
        key = Path(told["key_file"]).read_text("ascii").strip()
        yield Address(told["base_url"].removesuffix("/v1"), key)
    finally:
        process.terminate()
        process.wait(_SECONDS)


async def right_answers(model: Path, tokens: int) -> list[Ask]:
    """The prompts, and what this process answers to them alone."""
    asks = []
    async with LocalCluster.from_pretrained(model) as cluster:
        for prompt in _PROMPTS:
            answer = cluster.generate(prompt, raw=True, max_new_tokens=tokens, temperature=0.0)
            asks.append(Ask(prompt, tokens, "".join([token.text async for token in answer])))
    return asks


def _goes_on(wanted: Wanted) -> Callable[[int], bool]:
    if wanted.seconds is None:
        return lambda count: count < wanted.requests
    end = time.monotonic() + wanted.seconds
    return lambda count: time.monotonic() < end


def _restarter(
    config: Path, pids: dict[Role, int], stack: ExitStack, environment: dict[str, str]
) -> Callable[[], Awaitable[None]]:
    """A function that kills evaluator A and starts it again."""
    role = Role.EVALUATOR_A

    async def restart() -> None:
        os.kill(pids[role], signal.SIGKILL)
        process, log = start_party(role, config, "again", **environment)
        pids[role] = process.pid
        stack.callback(process.wait)
        stack.callback(process.terminate)
        await anyio.to_thread.run_sync(wait_for_links, process, log)

    return restart


async def _loads(
    wanted: Wanted, address: Address, asks: list[Ask], halfway: Callable[[], Awaitable[None]] | None
) -> list[tuple[Summary, list[Seen], tuple[int, int]]]:
    found = []
    for clients in wanted.clients:
        seen, seconds = await load(
            address.client,
            _MODEL,
            asks,
            clients,
            _goes_on(wanted),
            leaving=wanted.leaving,
            halfway=halfway,
            pause=_PAUSE,
        )
        found.append((Summary.of(clients, seen, seconds), seen, await address.state()))
    return found


def run(wanted: Wanted, name: str) -> Iterator[Result]:
    """Raises PumaError: an answer was wrong, or a client got neither an answer nor a reason."""
    asks = anyio.run(right_answers, wanted.model, wanted.tokens)
    settings = {"PUMA_CLUSTER__NETWORK": wanted.network} if wanted.network else {}
    environment = {**os.environ, **settings}
    with tempfile.TemporaryDirectory(prefix="puma-") as folder, ExitStack() as stack:
        config = write_cluster(Path(folder))
        pids = stack.enter_context(parties(config, **settings))
        puma("upload", wanted.model, "--name", _MODEL, "--cluster", config)
        address = stack.enter_context(gateway(config, wanted.at_once, environment))
        before = anyio.run(address.state)
        halfway = _restarter(config, pids, stack, settings) if wanted.restart else None
        found = anyio.run(_loads, wanted, address, asks, halfway)
    one = found[0][0].rate
    for summary, seen, state in found:
        yield _result(name, wanted, summary, one, before, state)
        _check(seen)


def _check(seen: Sequence[Seen]) -> None:
    bad = [each for each in seen if each.outcome in ("wrong", "broken")]
    if bad:
        said = ", ".join(sorted({f"{each.outcome} {each.reason}".strip() for each in bad}))
        raise PumaError(f"{len(bad)} of {len(seen)} requests: {said}")


def _result(
    name: str,
    wanted: Wanted,
    summary: Summary,
    one: float,
    before: tuple[int, int],
    after: tuple[int, int],
) -> Result:
    times = (
        f"{title} {getattr(summary, title.lower())}" for title in ("TTFT", "TPOT", "ITL", "E2EL")
    )
    outcomes = ", ".join(f"{count} {what}" for what, count in summary.outcomes.items())
    details: dict[str, Any] = {
        **asdict(summary),
        "ratio": summary.rate / one if one else 0.0,
        "memory_before": before[0],
        "memory_after": after[0],
        "tasks_before": before[1],
        "tasks_after": after[1],
        "wanted": {**asdict(wanted), "model": wanted.model.name},
    }
    grown = (after[0] - before[0]) / 1e6
    return Result(
        name,
        f"{summary.clients} clients{f', {wanted.network}' if wanted.network else ''}",
        Spread.of([summary.seconds]),
        summary.tokens,
        "tokens",
        note=f"{details['ratio']:.2f} of one client; {outcomes}; mean / median / p99 s: "
        f"{'; '.join(times)}; gateway {grown:+.0f} MB, {after[1] - before[1]:+d} tasks",
        details=details,
    )


def _load(options: Options) -> Iterator[Result]:
    wanted = Wanted(demo_model_path(), requests=options.runs(2))
    if options.quick:
        wanted = replace(wanted, clients=(1, 2), tokens=2)
    yield from run(wanted, _NAME)


def _rough(options: Options) -> Iterator[Result]:
    wanted = Wanted(demo_model_path(), (16,), options.runs(3), leaving=0.2, restart=True)
    if options.quick:
        wanted = replace(wanted, clients=(4,), tokens=2)
    yield from run(wanted, _ROUGH)


BENCHMARKS = [
    Benchmark(_NAME, "1 to 16 streaming clients of a gateway over five processes", _load, False),
    Benchmark(_ROUGH, "16 of them, some hang up, and a party is restarted", _rough, False),
]
