"""Keywords passed from one public call to another, typed so that mypy checks them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

from models.programs.steps import RequestSettings
from models.texts.options import TaskOptions
from protocols.base.lane import Settings
from puma_actors.base.compute import Compute
from puma_actors.roles.owner import Progress
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import Network


class KeepingOptions(TypedDict, total=False):
    """How a `LocalCluster` computes, and where it keeps a model."""

    settings: Settings | RequestSettings | None
    memory: int | None
    public_weights: bool


class RunOptions(KeepingOptions, total=False):
    """Keywords of `LocalCluster`, except those of `ClusterOptions`."""

    codec: bool
    address: str
    compute: Compute | None
    texts: Sequence[Sequence[int]]
    progress: Progress


class ClusterOptions(RunOptions, total=False):
    """Keywords of `LocalCluster`, see there."""

    network: Network | str | Path | None
    recorder: Recorder | None


CLUSTER_OPTIONS = frozenset((*RunOptions.__annotations__, *ClusterOptions.__annotations__))


class PipelineOptions(ClusterOptions, TaskOptions, total=False):
    """Keywords of a pipeline with its own cluster: those of the cluster, and of the task."""


def cluster_options(options: PipelineOptions) -> ClusterOptions:
    """The options of the cluster."""
    found = {name: each for name, each in options.items() if name in CLUSTER_OPTIONS}
    return cast(ClusterOptions, found)
