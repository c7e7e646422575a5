"""Open a model for any command: in this process, or at three remote parties."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from models.checkpoints.weights import demo_model_path
from models.programs.plan import Weights
from models.programs.steps import RequestSettings
from protocols.errors import ConfigError
from protocols.kernels import warm_up
from puma_actors.api.life import Cluster
from puma_actors.api.local import LocalCluster
from puma_actors.api.options import ClusterOptions
from puma_actors.api.remote import RemoteCluster
from puma_actors.api.requests import Requests
from puma_actors.base.sizes import parse_size
from puma_actors.cli.notice import warn
from puma_actors.cli.options import PreparedChoice
from puma_actors.cli.output import progress, tell
from puma_actors.cli.where import Where
from puma_actors.hosts.config import load_config
from puma_actors.roles.owner import Progress
from puma_actors.transports.delay.network import parse_network

_KINDS: Mapping[Weights, str] = {
    "private": "note: private weights: no party knows the model, the prompt or the answer",
    "public": "note: public weights: the parties know the model, not the prompt or the answer",
}


def open_cluster(
    model: str | None, settings: RequestSettings, where: Where, report: Progress
) -> LocalCluster:
    """A cluster in this process for a model, or for the demo model; not yet running.

    Raises:
        ConfigError: options that conflict, or an unknown network.
    """
    options = local_options(settings, where, report)  # before the model is read
    path = demo_model_path() if model is None else model
    return LocalCluster.from_pretrained(path, **options)


def local_options(settings: RequestSettings, where: Where, report: Progress) -> ClusterOptions:
    """Options of a `LocalCluster`, from those of the command line.

    Raises:
        ConfigError: options that conflict, or an unknown network.
    """
    if where.tokenizer is not None or where.insecure_no_tls:
        raise ConfigError("--tokenizer and --insecure-no-tls need --cluster")
    if where.prepared is PreparedChoice.REQUIRE:
        raise ConfigError("--prepared require needs --cluster: remote parties prepare units")
    if where.public_weights:
        if where.require is not None:
            raise ConfigError(f"--public-weights: not with --require {where.require}")
        tell(_KINDS["public"])
    return {
        "settings": settings,
        "network": parse_network(where.network),
        "codec": where.codec,
        "public_weights": where.public_weights,
        "memory": None if where.memory is None else parse_size(where.memory, "--memory"),
        "progress": report,
    }


def _ignore(requests: Requests) -> None:
    """Check nothing."""


@asynccontextmanager
async def open_requests(
    model: str | None,
    settings: RequestSettings,
    where: Where,
    *,
    check: Callable[[Cluster], None] = _ignore,
    quiet: bool = False,
) -> AsyncIterator[Cluster]:
    """A running `LocalCluster`, or a `RemoteCluster`; stopped when the block ends.

    Args:
        model: its path (None: the demo model), or its name at the parties.
        check: called as soon as configuration and tokenizer are known, before the work begins;
            may refuse the request.
        quiet: no progress on stderr.

    Raises:
        ConfigError: options that conflict.
    """
    with progress(quiet=quiet) as report:
        running = await open_one(model, settings, where, report)
        await _enter(running, check)
    failure: BaseException | None = None
    try:
        yield running
    except BaseException as error:
        failure = error
        raise
    finally:
        await running.__aexit__(type(failure) if failure else None, failure, None)


async def open_one(
    model: str | None,
    settings: RequestSettings,
    where: Where,
    report: Progress,
    told: set[Weights] | None = None,
) -> Cluster:
    """A cluster that is not entered yet. Arguments and errors as for `open_requests`.

    Args:
        told: kinds of weights that the user knows of; the model's is told if it is not among them,
            and added.
    """
    if where.cluster is None:
        return open_cluster(model, settings, where, report)
    found = await _open_remote(model, settings, where, where.cluster, report)
    if told is None or found.weights not in told:
        tell(_KINDS[found.weights])
    if told is not None:
        told.add(found.weights)
    return found


async def _open_remote(
    model: str | None, settings: RequestSettings, where: Where, cluster: Path, report: Progress
) -> RemoteCluster:
    if where.codec:
        raise ConfigError("--codec: for models in this process, not with --cluster")
    if where.public_weights:
        raise ConfigError(
            "--public-weights: `puma upload` decides this for remote parties; `puma models list` "
            "shows it"
        )
    if where.memory is not None:
        raise ConfigError("--memory: remote parties set their own limits.memory in cluster.toml")
    if model is None:
        raise ConfigError("--cluster needs --model NAME: `puma models list` shows them")
    config = load_config(cluster, insecure_no_tls=where.insecure_no_tls, network=where.network)
    await anyio.to_thread.run_sync(warm_up, lambda line: report(line, 0.0))
    report("calling the parties", 0.0)
    return await RemoteCluster.open(
        config,
        model,
        tokenizer=where.tokenizer,
        settings=settings,
        require=None if where.require is None else "private-weights",
        prepared=where.prepared.value,
    )


async def _enter(found: Cluster, check: Callable[[Cluster], None]) -> None:
    try:
        check(found)
        warn(found.tokenizer)
    except BaseException:
        await found.aclose()
        raise
    await found.__aenter__()
