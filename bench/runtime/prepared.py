"""The prefill of a short prompt with prepared units and without, over five processes and a WAN.

The two take turns in one run. With a unit nothing is dealt while the client waits.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import numpy as np

from bench.runtime.hosts import parties, puma, write_cluster
from bench.tools.harness import Benchmark, Options, Result, Spread
from models.files.locate import demo_model_path
from protocols.errors import PumaError
from puma_actors.api.remote import PrepareOptions, RemoteCluster, prepare_units
from puma_actors.api.usage import Usage
from puma_actors.hosts.config import ClusterConfig, load_config
from puma_actors.prepare.unit import Prepared

_NAME = "waiting.prepared"
_NETWORK = "wan"
_TOKENS = 32
_RUNS = 3
_STRIDE = 101


async def _ask(config: ClusterConfig, prepared: Prepared, tokens: int) -> tuple[Usage, int]:
    """The cost of a prompt of so many tokens, and the token that follows it."""
    async with await RemoteCluster.open(config, "model", prepared=prepared) as remote:
        ids = [_STRIDE * number % remote.config.vocab_size for number in range(1, tokens + 1)]
        logits = await remote.forward(ids, rows="last")
        return remote.usage, int(np.argmax(logits))


async def _compare(config: ClusterConfig, tokens: int, runs: int) -> dict[Prepared, list[Usage]]:
    options = PrepareOptions(tokens_in=tokens, tokens_out=1, count=runs)
    await prepare_units(config, "model", options)
    found: dict[Prepared, list[Usage]] = {"never": [], "require": []}
    answers = set()
    for _ in range(runs):
        for prepared, usages in found.items():
            usage, token = await _ask(config, prepared, tokens)
            usages.append(usage)
            answers.add(token)
    if len(answers) > 1:
        raise PumaError("with prepared units the parties answered something else than without")
    return found


def compare(model: Path, network: str, tokens: int, runs: int) -> Iterator[Result]:
    """Seconds of the prefill, with and without.

    Raises:
        PumaError: the answers differ, something was dealt with a unit, or something failed.
    """
    with tempfile.TemporaryDirectory(prefix="puma-") as folder:
        path = write_cluster(Path(folder))
        with parties(path):
            puma("upload", model, "--name", "model", "--cluster", path)
        with parties(path, PUMA_CLUSTER__NETWORK=network):
            config = load_config(path, network=network, environ={})
            found = anyio.run(_compare, config, tokens, runs)
    plain, prepared = (
        [usage.seconds["prefill"] for usage in found[wish]] for wish in ("never", "require")
    )
    dealt = {wish: max(each.total.offline for each in usages) for wish, usages in found.items()}
    if dealt["require"]:
        raise PumaError(f"{dealt['require']} bytes were dealt for a prepared request")
    ratio = sum(plain) / sum(prepared)
    yield Result(
        _NAME,
        f"{network}, dealt on the way",
        Spread.of(plain),
        tokens,
        "tokens",
        note=f"{dealt['never'] / 1e6:,.1f} MB dealt",
    )
    yield Result(
        _NAME,
        f"{network}, prepared",
        Spread.of(prepared),
        tokens,
        "tokens",
        note=f"nothing dealt, {ratio:.2f} x as fast",
        details={"ratio": ratio, "dealt": dealt["never"]},
    )


def prepared(options: Options) -> Iterator[Result]:
    tokens = 4 if options.quick else _TOKENS
    yield from compare(demo_model_path(), _NETWORK, tokens, options.runs(_RUNS))


BENCHMARKS = [Benchmark(_NAME, "prefill with prepared units and without", prepared, False)]
