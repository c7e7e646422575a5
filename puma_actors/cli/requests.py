"""One way to a model for every command: in this process, or at three parties elsewhere."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from models.checkpoints.weights import demo_model_path
from protocols.base.lane import Settings
from protocols.errors import ConfigError
from protocols.kernels import warm_up
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.api.requests import Requests
from puma_actors.cli.output import progress
from puma_actors.hosts.config import load_config
from puma_actors.transports.delay.network import parse_network


def open_cluster(
    model: str | None, settings: Settings, network: str | None = None, **options: Any
) -> LocalCluster:
    """A cluster in this process for a model, or for the demo model; not yet running."""
    options["network"] = parse_network(network)  # before the model is read
    path = demo_model_path() if model is None else model
    return LocalCluster.from_pretrained(path, settings=settings, **options)


def local_options(
    *,
    cluster: None,
    tokenizer: Path | None,
    insecure_no_tls: bool,
    network: str | None,
    codec: bool,
) -> dict[str, Any]:
    """Options of a `LocalCluster`, from those of the command line.

    Raises:
        ConfigError: options that do not go together, or a network that there is not.
    """
    if tokenizer is not None or insecure_no_tls:
        raise ConfigError("--tokenizer and --insecure-no-tls go with --cluster")
    return {"network": parse_network(network), "codec": codec}


def _ignore(requests: Requests) -> None:
    """Nothing to check."""


@asynccontextmanager
async def open_requests(
    model: str | None,
    settings: Settings,
    *,
    cluster: Path | None = None,
    tokenizer: Path | None = None,
    insecure_no_tls: bool = False,
    network: str | None = None,
    codec: bool = False,
    check: Callable[[Any], None] = _ignore,
    quiet: bool = False,
    **options: Any,
) -> AsyncIterator[LocalCluster | RemoteCluster]:
    """A running `LocalCluster`, or with `cluster` a `RemoteCluster`; stopped when the block ends.

    Args:
        model: where it lies (None: the demo model), or its name at the parties.
        cluster: a cluster.toml. tokenizer: a client's own, for a model at parties elsewhere.
        check: called as soon as configuration and tokenizer are known, before the work begins;
            may refuse what was asked for.
        quiet: no progress on stderr.
        options: for `LocalCluster` (as `head=`).

    Raises:
        ConfigError: options that do not go together.
    """
    if cluster is None:
        options |= local_options(
            cluster=None,
            tokenizer=tokenizer,
            insecure_no_tls=insecure_no_tls,
            network=network,
            codec=codec,
        )
        with progress(quiet=quiet) as report:
            local = open_cluster(model, settings, progress=report, **options)
            running = await _entered(local, check)
    else:
        given = {"codec": codec, **options}
        if wrong := ", ".join(f"--{name}" for name, value in given.items() if value):
            raise ConfigError(f"{wrong}: for models in this process, not with --cluster")
        if model is None:
            raise ConfigError("--cluster needs --model NAME: `puma models list` shows them")
        config = load_config(cluster, insecure_no_tls=insecure_no_tls, network=network)
        with progress(quiet=quiet) as report:
            await anyio.to_thread.run_sync(warm_up, lambda line: report(line, 0.0))
            report("calling the parties", 0.0)
            remote = await RemoteCluster.open(config, model, tokenizer=tokenizer, settings=settings)
            running = await _entered(remote, check)
    failure: BaseException | None = None
    try:
        yield running
    except BaseException as error:
        failure = error
        raise
    finally:
        await running.__aexit__(type(failure) if failure else None, failure, None)


async def _entered(found: Any, check: Callable[[Any], None]) -> Any:
    try:
        check(found)
    except BaseException:
        if isinstance(found, RemoteCluster):
            await found.aclose()
        else:
            found.checkpoint.close()
        raise
    await found.__aenter__()
    return found
