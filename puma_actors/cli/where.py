"""Where the parties run, as the options of the command line say it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """In this process, or with `cluster` elsewhere.

    Attributes:
        codec, network: as for `LocalCluster`; `network` also for connections to parties elsewhere.
        cluster: a cluster.toml. tokenizer: a client's own, for a model at parties elsewhere.
        insecure_no_tls: allow addresses without encryption in the cluster.toml.
    """

    codec: bool = False
    network: str | None = None
    cluster: Path | None = None
    tokenizer: Path | None = None
    insecure_no_tls: bool = False
