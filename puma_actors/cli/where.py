"""Where the parties run, from the options of the command line."""

from dataclasses import dataclass

from puma_actors.cli.options import (
    ClusterOption,
    CodecOption,
    InsecureOption,
    MemoryOption,
    NetworkOption,
    PreparedChoice,
    PreparedOption,
    PublicOption,
    RequireOption,
    TokenizerOption,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """In this process, or remote with `cluster`. For commands decorated with `spread`.

    Attributes:
        memory: bytes that a model may take in this process, such as "16GB".
        public_weights: the parties know the weights.
        require: what the model must have, or it is refused.
        codec, network: as for `LocalCluster`; `network` also for connections to remote parties.
        cluster: a cluster.toml. tokenizer: a client's own, for a model at remote parties.
        insecure_no_tls: allow addresses without encryption in the cluster.toml.
        prepared: whether a request uses a unit that remote parties have prepared.
    """

    memory: MemoryOption = None
    public_weights: PublicOption = False
    require: RequireOption = None
    codec: CodecOption = False
    network: NetworkOption = None
    cluster: ClusterOption = None
    tokenizer: TokenizerOption = None
    insecure_no_tls: InsecureOption = False
    prepared: PreparedOption = PreparedChoice.AUTO
