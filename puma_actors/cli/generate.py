"""`puma generate` and `puma forward`."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import numpy as np
from rich.console import Group
from rich.live import Live
from rich.text import Text

from models.sampling import SamplingConfig
from protocols.errors import ConfigError
from protocols.lane import Settings
from puma_actors.cli.notice import announce
from puma_actors.cli.output import amount, check_file, print_json, progress, stdout, writing
from puma_actors.cli.requests import open_requests
from puma_actors.cli.summary import Cluster, network_of, print_summary, usage_report
from puma_actors.cluster import Usage


def run_generate(
    model: str | None,
    prompt: str,
    sampling: SamplingConfig,
    settings: Settings,
    *,
    raw: bool,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Load, share, answer, and say what it took. `options`: as for `open_requests`."""

    def check(cluster: Cluster) -> None:
        cluster.check_sampling(sampling)
        cluster.encode(prompt, raw=raw)
        if not raw and cluster.tokenizer is not None and cluster.tokenizer.note:
            print(f"note: {cluster.tokenizer.note}", file=sys.stderr)

    async def run() -> None:
        async with open_requests(model, settings, check=check, quiet=as_json, **options) as cluster:
            ids = cluster.encode(prompt, raw=raw)
            announce(cluster, ids, sampling)
            text = await _stream(cluster, ids, sampling, quiet=as_json)
        if as_json:
            print_json({"text": text, **usage_report(cluster, cluster.usage)})
        else:
            print_summary(cluster, cluster.usage, stopped=True)

    anyio.run(run)


async def _stream(
    cluster: Cluster, ids: list[int], sampling: SamplingConfig, *, quiet: bool
) -> str:
    """The answer, shown as it grows; on a terminal with a status line that keeps ticking."""
    text = ""
    started = time.perf_counter()
    live = stdout.is_terminal and not quiet

    def view() -> Group:
        return _view(text, cluster.usage, time.perf_counter() - started)

    shown: AbstractContextManager[Any] = nullcontext()
    if live:
        shown = Live(console=stdout, get_renderable=view, refresh_per_second=4, transient=True)
    with shown:
        async for token in cluster.generate(ids, sampling):
            text += token.text
            if not live and not quiet:
                print(token.text, end="", flush=True)
    if live:
        stdout.print(Text(text))
    elif not quiet:
        print(flush=True)
    return text


def _view(text: str, usage: Usage, seconds: float) -> Group:
    total = usage.total
    count = len(usage.token_ids)
    decode = usage.seconds.get("decode", 0.0)
    if decode:
        phase = f"{(count - 1) / decode:.2f} tokens/s"
    elif count:
        phase = "first token"
    else:
        phase = f"reading {len(usage.prompt_ids)} prompt tokens"
    status = (
        f"{phase} · {count} tokens · {total.rounds:,} rounds · "
        f"{amount(total.online)} online · {amount(total.offline)} dealt ahead · {seconds:.0f} s"
    )
    return Group(Text(text), Text(status, style="dim"))


# -- forward --------------------------------------------------------------------------------------


def parse_ids(text: str) -> list[int]:
    """Token ids from "1,2,3".

    Raises:
        ConfigError: an entry is not a whole number.
    """
    ids = []
    for part in text.split(","):
        word = part.strip()
        if not word.isdecimal():
            raise ConfigError(f"--input-ids: {word!r} is not a token id; write ids as 1,2,3")
        ids.append(int(word))
    return ids


def run_forward(
    model: str | None,
    input_ids: str,
    output: Path,
    settings: Settings,
    *,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Write `logits`, or the `last_hidden_state` of a bare model, to an .npz file: a row for each
    result (as a rule a token). `options`: as for `open_requests`.
    """
    ids = parse_ids(input_ids)
    check_file("--output", output, ".npz")

    async def run() -> None:
        async with open_requests(
            model, settings, check=lambda found: found.check_ids(ids), quiet=as_json, **options
        ) as cluster:
            with progress(quiet=as_json) as report:
                report("running the model on shares", 0.0)
                result = await cluster.forward(ids)
        name = "last_hidden_state" if cluster.config.head == "none" else "logits"
        arrays = {name: result.astype(np.float32), "input_ids": np.asarray(ids)}
        with writing("--output", output):
            np.savez(output, **arrays)  # type: ignore[arg-type]
        summary = usage_report(cluster, cluster.usage, generated=False)
        if as_json:
            shape = list(result.shape)
            print_json({"output": str(output), f"{name}_shape": shape, **summary})
        else:
            total = cluster.usage.total
            stdout.print(f"{name} {result.shape} written to {output}", highlight=False)
            stdout.print(
                f"{summary['seconds']['prefill']:.2f} s · {total.rounds:,} rounds · "
                f"{amount(total.online)} online · {amount(total.offline)} dealt ahead",
                style="dim",
                highlight=False,
            )
            if (network := network_of(cluster)) is not None:
                stdout.print(f"network {network.describe()}", style="dim", highlight=False)

    anyio.run(run)
