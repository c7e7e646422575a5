"""`puma generate` and `puma forward`."""

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import anyio
import numpy as np
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from models.sampling import SamplingConfig
from protocols.cost import Cost
from protocols.errors import ConfigError
from protocols.lane import Settings
from puma_actors.cli.output import amount, print_json, progress, stderr, stdout
from puma_actors.cli.requests import open_requests
from puma_actors.cluster import LocalCluster, Usage
from puma_actors.network import Network
from puma_actors.remote import RemoteCluster

Cluster: TypeAlias = LocalCluster | RemoteCluster


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
            text = await _stream(cluster, ids, sampling, quiet=as_json)
        if as_json:
            print_json({"text": text, **_usage(cluster)})
        else:
            _summary(cluster)

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


def _network(cluster: Cluster) -> Network | None:
    """What was put between the roles; between hosts there is a real one."""
    return cluster.network if isinstance(cluster, LocalCluster) else None


def _starting(cluster: Cluster) -> dict[str, tuple[str, float]]:
    """By the name in JSON: what had to be done before the request, and its seconds."""
    seconds = cluster.seconds
    if isinstance(cluster, RemoteCluster):
        return {
            "load": ("open the session", seconds["open"]),
            "connect": ("agree on keys", seconds["connect"]),
        }
    load = seconds["kernels"] + seconds["load"] + seconds["calibrate"]
    return {"load": ("load the model", load), "share": ("share the weights", seconds["share"])}


def _usage(cluster: Cluster) -> dict[str, Any]:
    """Everything but the text, as the JSON output names it."""
    usage, total = cluster.usage, cluster.usage.total
    return {
        "prompt_ids": usage.prompt_ids,
        "token_ids": usage.token_ids,
        "seconds": {
            **{key: spent for key, (_, spent) in _starting(cluster).items()},
            "prefill": usage.seconds.get("prefill", 0.0),
            "decode": usage.seconds.get("decode", 0.0),
        },
        "traffic": {
            "rounds": total.rounds,
            "online_bytes": total.online,
            "offline_bytes": total.offline,
        },
        "network": network.to_public() if (network := _network(cluster)) else None,
    }


def _summary(cluster: Cluster) -> None:
    """A short table on stderr: what prefill took, and each token after it."""
    usage = cluster.usage
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "time", "rounds", "online", "dealt ahead"):
        table.add_column(name, justify="left" if not name else "right")
    for what, spent in _starting(cluster).values():
        table.add_row(what, f"{spent:.1f} s")
    if usage.steps:
        prefill = f"prefill, {len(usage.prompt_ids)} tokens"
        table.add_row(*_row(prefill, usage.seconds.get("prefill", 0.0), usage.steps[0]))
    decoded = usage.steps[1 : len(usage.token_ids)]
    if decoded:
        count = len(decoded)
        total = sum(decoded, Cost())
        mean = Cost(total.rounds // count, total.online // count, total.offline // count)
        each = usage.seconds.get("decode", 0.0) / count
        table.add_row(*_row(f"each of {count} more tokens", each, mean))
    stderr.print()
    stderr.print(table)
    if (network := _network(cluster)) is not None:
        stderr.print(f"network {network.describe()}", style="dim", highlight=False)
    stderr.print(
        f"stopped: {usage.stop_reason} · no party saw the prompt, the weights or an activation",
        style="dim",
    )


def _row(name: str, seconds: float, cost: Cost) -> tuple[str, ...]:
    return (
        name,
        f"{seconds:.2f} s",
        f"{cost.rounds:,}",
        amount(cost.online),
        amount(cost.offline),
    )


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


def check_output(output: Path) -> None:
    """Find out before any work whether the file can be written.

    Raises:
        ConfigError: it cannot, or it has another suffix than .npz.
    """
    if output.suffix != ".npz":
        raise ConfigError(f"--output: {output} must end in .npz")
    existed = output.exists()
    try:
        output.open("ab").close()
    except OSError as error:
        raise ConfigError(f"--output: cannot write {output}: {error.strerror}") from None
    if not existed:
        output.unlink()


def run_forward(
    model: str | None,
    input_ids: str,
    output: Path,
    settings: Settings,
    *,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Write `logits` (tokens, vocabulary) to an .npz file. `options`: as for `open_requests`."""
    ids = parse_ids(input_ids)
    check_output(output)

    async def run() -> None:
        async with open_requests(
            model, settings, check=lambda found: found.check_ids(ids), quiet=as_json, **options
        ) as cluster:
            with progress(quiet=as_json) as report:
                report("running the model on shares", 0.0)
                logits = await cluster.forward(ids)
        try:
            np.savez(output, logits=logits.astype(np.float32), input_ids=np.asarray(ids))
        except OSError as error:
            raise ConfigError(f"--output: cannot write {output}: {error.strerror}") from None
        summary = _usage(cluster)
        del summary["token_ids"]
        summary["seconds"].pop("decode")
        if as_json:
            shape = list(logits.shape)
            print_json({"output": str(output), "logits_shape": shape, **summary})
        else:
            total = cluster.usage.total
            stdout.print(f"logits {logits.shape} written to {output}", highlight=False)
            stdout.print(
                f"{summary['seconds']['prefill']:.2f} s · {total.rounds:,} rounds · "
                f"{amount(total.online)} online · {amount(total.offline)} dealt ahead",
                style="dim",
                highlight=False,
            )
            if (network := _network(cluster)) is not None:
                stdout.print(f"network {network.describe()}", style="dim", highlight=False)

    anyio.run(run)
