"""The cost of a private inference on a network, and where its time goes.

    profile = await run_profile(path, network="wan", tokens_in=32, tokens_out=4)
    profile.phases                       prefill and decode: rows by layer, place, protocol
    profile.to_public()                  as JSON types
    chrome.trace_events(profile.recorder), page.render(profile)

Without network delays, recording makes a decode step up to three per cent longer. The token ids are
made up: costs do not depend on them.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack

from models.checkpoints.checkpoint import Checkpoint, StoredCheckpoint
from models.drafts.drafter import DRAFT_TOKENS
from models.programs.head_layers import default_rows
from models.programs.plan import Plan
from models.programs.predict import predict
from models.programs.program import Batch, Drafted
from models.programs.steps import StepSettings
from protocols.base.lane import TREES, Lane, Link, Settings
from protocols.base.meter import Meter
from protocols.base.shares import Role
from protocols.drivers.observed import ObservedLane
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster
from puma_actors.api.options import RunOptions
from puma_actors.base.compute import available_cores
from puma_actors.base.machine import peak_memory, processor
from puma_actors.hosts.admission import software
from puma_actors.profiling.analysis import Phase, analyse
from puma_actors.profiling.ranking import Advice, rank
from puma_actors.profiling.whatif.variants import Traced, traced_of
from puma_actors.roles.owner import ignore_progress
from puma_actors.session.recorder import Recorder
from puma_actors.transports.delay.network import ANY, Network, Route, parse_network

GENERATES = "causal-lm"


@dataclass(frozen=True)
class Profile:
    """A request and its cost.

    Attributes:
        model: name of the directory or file. tokens_in, tokens_out: as requested; 0 tokens out for
            a model that generates none.
        seconds: times of loading and sharing, by phase.
        phases: the prefill and all decode steps together, or the single forward pass.
        recorder: every event, for a trace.
        others: declared counts of the same request with other trees, with a draft and without.
        draft: how many tokens each further step proposed.
        about: when and where it was made, see `about`.
    """

    model: str
    network: Network | None
    settings: StepSettings
    tokens_in: int
    tokens_out: int
    seconds: dict[str, float]
    phases: list[Phase]
    recorder: Recorder
    others: tuple[Traced, ...] = ()
    draft: int = 0
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def matches(self) -> bool:
        """Whether rounds and bytes match the prediction everywhere."""
        return not any(phase.differences for phase in self.phases)

    def ranking(self, phase: Phase) -> list[Advice]:
        """Possible improvements, the largest share of time first."""
        return rank(phase, self.network, self.settings.at(int(phase.name == "decode")))

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "model": self.model,
            "network": self.network.to_public() if self.network else None,
            "settings": {
                "approximation": self.settings.first.approximation,
                "tree": self.settings.first.tree,
                "lanes": self.settings.first.lanes,
                "further": {
                    "tree": self.settings.further.tree,
                    "lanes": self.settings.further.lanes,
                },
            },
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "draft": self.draft,
            "about": self.about,
            "seconds": {name: round(value, 6) for name, value in self.seconds.items()},
            "matches_prediction": self.matches,
            "phases": [
                {**phase.to_public(), "ranking": [a.to_public() for a in self.ranking(phase)]}
                for phase in self.phases
            ],
            "variants": [other.to_public() for other in self.others],
        }


def check_tokens(
    cluster: LocalCluster, tokens_in: int, tokens_out: int | None, draft: int = 0
) -> int:
    """Steps of the request: one, or one for each new token. Each but the first proposes `draft`
    more.

    Raises:
        ConfigError: the model cannot take that many tokens, or generates none.
    """
    config = cluster.config
    for name, count in (("in", tokens_in), ("out", tokens_out)):
        if count is not None and count < 1:
            raise ConfigError(f"{count} tokens {name}: give at least 1")
    if config.head != GENERATES:
        for option, given in (("--tokens-out", tokens_out), ("--draft", draft or None)):
            if given is not None:
                raise ConfigError(
                    f"a model with head {config.head!r} generates no tokens: omit {option}"
                )
        steps = 1
    else:
        steps = DEFAULT_OUT if tokens_out is None else tokens_out
    if tokens_in + steps - 1 + draft > config.max_positions:
        drafted = f", with {draft} proposed," if draft else ""
        raise ConfigError(
            f"{tokens_in} tokens in and {steps} out{drafted} need more than the model's "
            f"{config.max_positions} positions: ask for fewer"
        )
    return steps


DEFAULT_OUT = 4
"""Default number of new tokens."""


async def record(
    cluster: LocalCluster,
    batch: Batch,
    steps: int,
    settings: StepSettings | None = None,
    draft: int = 0,
) -> int:
    """Run a request of made-up tokens on a recorded cluster; return its first step's number.

    Args:
        settings: default: what the cluster chooses.
        draft: how many tokens each further step proposes; none of them stays.
    """
    settings = settings or cluster.choose(batch, steps, draft).settings
    client, vocabulary = cluster.client, cluster.config.vocab_size
    inference = await client.begin(batch, steps + draft, settings, draft)
    try:
        for step in range(steps):
            count = batch.tokens if step == 0 else 1 + draft
            await client.step(inference, [(7 * i + step) % vocabulary for i in range(count)])
        await client.wait_reports(inference)
    finally:
        await client.end(inference)
    return inference.number


def traced(
    plan: Plan, batch: Batch, later: int | Sequence[Drafted], settings: Settings | StepSettings
) -> list[Meter]:
    """The declared cost of each step, by place and protocol: of the batch, and of so many steps of
    one token after it, or of steps with drafts.
    """
    meters: list[Meter] = []

    def lane_of(link: Link) -> Lane:
        meters.append(Meter(link.role))
        return ObservedLane.first(link, meters[-1])

    predict(plan, batch, later, settings, lane_of=lane_of)
    return meters


def phases_of(
    recorder: Recorder, first: int, meters: Sequence[Meter], *, generates: bool
) -> list[Phase]:
    """The phase of the first step, and that of all later steps together."""
    name = "prefill" if generates else "forward"
    phases = [analyse(recorder, name, [first], meters[:1])]
    if len(meters) > 1:
        numbers = range(first + 1, first + len(meters))
        phases.append(analyse(recorder, "decode", numbers, meters[1:]))
    return phases


async def profile_cluster(
    cluster: LocalCluster,
    recorder: Recorder,
    tokens_in: int,
    tokens_out: int | None = None,
    draft: int = 0,
) -> Profile:
    """Profile one request on a running cluster, which must have been created with the recorder.

    draft: how many tokens each further step proposes; none of them stays.
    """
    steps = check_tokens(cluster, tokens_in, tokens_out, draft)
    generates, batch = cluster.config.head == GENERATES, _batch(cluster, tokens_in)
    recorder.clear()
    gc.collect()  # of the loading: it would stop all parties for a tenth of a second
    settings = cluster.choose(batch, steps + draft, draft).settings
    first = await record(cluster, batch, steps, settings, draft)
    later = [Drafted(draft, 0)] * (steps - 1)
    meters = traced(cluster.plan, batch, later, settings)
    return Profile(
        model=_name_of(cluster.checkpoint),
        network=cluster.network,
        settings=settings,
        tokens_in=tokens_in,
        tokens_out=steps if generates else 0,
        seconds=dict(cluster.seconds),
        phases=phases_of(recorder, first, meters, generates=generates),
        recorder=recorder,
        others=_others(cluster, batch, steps, draft, settings),
        draft=draft,
        about=about(),
    )


def about() -> dict[str, Any]:
    """When, with which program and on which machine something was measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": software(),
        "processor": processor(),
        "cores": available_cores(),
        "peak_memory_bytes": peak_memory(),
    }


def _others(
    cluster: LocalCluster, batch: Batch, steps: int, draft: int, settings: StepSettings
) -> tuple[Traced, ...]:
    """What the request would have cost with the other trees, and with a draft or without, for `puma
    what-if`.
    """
    first = "prefill" if cluster.config.head == GENERATES else "forward"
    room = cluster.config.max_positions - batch.tokens - (steps - 1)
    drafts = {draft, 0 if draft else max(0, min(DRAFT_TOKENS, room))} if steps > 1 else {draft}
    found = []
    for tree in TREES:
        each = replace(settings.first, tree=tree)
        for proposed in sorted(drafts):
            if (StepSettings.of(each), proposed) != (settings, draft):
                later = [Drafted(proposed, 0)] * (steps - 1)
                meters = traced(cluster.plan, batch, later, each)
                found.append(traced_of(each, meters, first, proposed))
    return tuple(found)


def _name_of(checkpoint: Checkpoint) -> str:
    """The directory's name, if the file's own name says nothing."""
    if not isinstance(checkpoint, StoredCheckpoint):
        return checkpoint.where
    path = checkpoint.path
    return path.parent.name if path.suffix == ".safetensors" else path.name


def _batch(cluster: LocalCluster, tokens: int) -> Batch:
    generates = cluster.config.head == GENERATES
    return Batch((tokens,), "last" if generates else default_rows(cluster.config))


def without_upload(network: Network | None) -> Network | None:
    """The network without delays between the owner and the others: uploading gigabytes is not part
    of the measurement.
    """
    if network is None:
        return None
    upload = ((str(Role.OWNER), ANY), Route())
    return replace(network, links=(*network.links, upload))


async def run_profile(
    path_or_name: str | Path,
    *,
    network: Network | str | Path | None = None,
    tokens_in: int = 32,
    tokens_out: int | None = None,
    head: str | None = None,
    draft: int = 0,
    **options: Unpack[RunOptions],
) -> Profile:
    """Load and share a model, run one request twice (the first warms up), profile the second.

    Args:
        network: as for `LocalCluster`, except that the upload of the shares is not delayed.
        draft: as for `profile_cluster`.
        head, options: as for `LocalCluster.from_pretrained`.

    Raises:
        ConfigError: unusable arguments. ModelError: the model cannot be read.
    """
    network = parse_network(network)
    recorder = Recorder(network=network is not None)
    cluster = LocalCluster.from_pretrained(
        path_or_name, head=head, network=without_upload(network), recorder=recorder, **options
    )
    try:
        check_tokens(cluster, tokens_in, tokens_out, draft)
    except ConfigError:
        cluster.checkpoint.close()
        raise
    progress = options.get("progress", ignore_progress)
    async with cluster:
        progress("running the request to warm up", 0.0)
        await record(cluster, _batch(cluster, tokens_in), 1)
        progress("profiling the request", 0.0)
        profile = await profile_cluster(cluster, recorder, tokens_in, tokens_out, draft)
    return replace(profile, network=network)
