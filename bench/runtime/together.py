"""Tokens a second of 1, 2 and 4 clients at once, at three parties in processes of their own.

All clients are in this process, each with a session of its own. They begin to decode at the same
moment, after their prompts have been evaluated. Beside `max_batch = 8`: the same clients when no
two requests step together.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from bench.runtime.hosts import parties, write_cluster
from bench.tools.harness import Benchmark, Options, Result, Spread
from models.checkpoints.weights import open_checkpoint
from models.files.locate import demo_model_path
from models.tokens.tokenizer import Tokenizer
from protocols.base.lane import Settings
from puma_actors.api.remote import RemoteCluster, upload_model
from puma_actors.hosts.config import ClusterConfig, load_config

_NAME = "waiting.together"
_CLIENTS = (1, 2, 4)
_TOKENS = 5
_NETWORKS = ("", "wan")
_PROMPTS = ("Write a sentence about the sea.", "What is a star?", "Name a river.", "Who are you?")
_MODEL = "PUMA_BENCH_MODEL"
"""A variable with the path of another model than the small one that comes with the program."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds in which so many tokens were decoded by all clients together."""

    seconds: float
    tokens: int


class _Start:
    """Everybody goes on when all have come."""

    def __init__(self, count: int) -> None:
        self._missing = count
        self._event = anyio.Event()
        self.time = 0.0

    async def come(self) -> None:
        self._missing -= 1
        if self._missing == 0:
            self.time = anyio.current_time()
            self._event.set()
        await self._event.wait()


async def _client(config: ClusterConfig, prompt: str, tokens: int, start: _Start) -> int:
    """Decode so many tokens after the first one; returns how many there were."""
    count = 0
    async with await RemoteCluster.open(config, "model", settings=Settings()) as remote:
        async for token in remote.generate(prompt, max_new_tokens=tokens + 1):
            if token.id is None:
                continue
            if count == 0:
                await start.come()
            count += 1
    return count - 1


async def measure(config: ClusterConfig, clients: int, tokens: int) -> Measured:
    """Let clients decode at the same time."""
    start, found = _Start(clients), []

    async def one(prompt: str) -> None:
        found.append(await _client(config, prompt, tokens, start))

    async with anyio.create_task_group() as group:
        for number in range(clients):
            group.start_soon(one, _PROMPTS[number % len(_PROMPTS)])
    return Measured(anyio.current_time() - start.time, sum(found))


async def _upload(config: ClusterConfig, model: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        await upload_model(config, checkpoint, "model", tokenizer=Tokenizer.load(model))


def compare(
    model: Path, tokens: int, clients: Sequence[int], network: str, most: int
) -> Iterator[Result]:
    """Tokens a second by number of clients.

    Args:
        tokens: decoded by each client. network: a preset, or "". most: `limits.max_batch`.

    Raises:
        PumaError: something failed.
    """
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        path = write_cluster(Path(folder))
        settings = {"PUMA_CLUSTER__NETWORK": network, "PUMA_CLUSTER__LIMITS__MAX_BATCH": most}
        with parties(path, **settings):
            config = load_config(path, network=network)
            anyio.run(_upload, config, model)
            for count in clients:
                found = anyio.run(measure, config, count, tokens)
                yield Result(
                    _NAME,
                    f"{network or 'no network'}, max_batch {most}, clients at once: {count}",
                    Spread.of([found.seconds]),
                    found.tokens,
                    "tokens",
                    details={"clients": count, "max_batch": most, "network": network},
                )


def together(options: Options) -> Iterator[Result]:
    given = os.environ.get(_MODEL)
    model = Path(given) if given else demo_model_path()
    tokens, networks = (2, _NETWORKS[:1]) if options.quick else (_TOKENS, _NETWORKS)
    for network in networks:
        for most in (1, 8):
            yield from compare(model, tokens, _CLIENTS, network, most)


BENCHMARKS = [Benchmark(_NAME, "clients at once, their steps taken together", together, False)]
