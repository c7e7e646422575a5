"""Read what `puma profile --json` printed, from any machine."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from protocols.base.shares import EVALUATORS, Role
from protocols.errors import ConfigError
from puma_actors.base.strict import first_fault
from puma_actors.planning.choice import DEALT, EVEN
from puma_actors.planning.machine import REFERENCE
from puma_actors.planning.timing import Step, fitted
from puma_actors.profiling.profile import Profile
from puma_actors.profiling.sweep import COMPUTE, HIDDEN
from puma_actors.profiling.whatif.variants import (
    Draft,
    Request,
    Row,
    Variant,
    Work,
    work_of,
    yielding,
)
from puma_actors.transports.delay.network import ANY, Ends, Network, Route

_MOST_BYTES = 256 << 20
"""A longer file is no profile: that of a model with a hundred layers takes less than a megabyte."""
_GIVE = "give what puma profile --json wrote"
_AGAIN = "write it again with puma profile --json"


class _Table(BaseModel):
    """A part of the file. Keys that are not needed here are ignored: later versions add some."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class _Row(_Table):
    name: str
    rounds: int = Field(ge=0)
    exchanges: int = Field(ge=0)
    online_bytes: int = Field(ge=0)
    offline_bytes: int = Field(ge=0)
    seconds: dict[str, float] = Field(default_factory=dict)

    def row(self) -> Row:
        """Without units in its names."""
        spent = self.seconds.get(COMPUTE, 0.0) + self.seconds.get(HIDDEN, 0.0)
        counts = (self.rounds, self.exchanges, self.online_bytes, self.offline_bytes)
        return Row(self.name, *counts, spent if self.seconds else None)


class _Counts(_Table):
    name: Literal["prefill", "decode", "forward"]
    steps: int = Field(ge=1)
    layers: list[_Row] = Field(min_length=1)
    places: list[_Row]

    def work(self, ratios: tuple[float, float]) -> Work:
        """One step, without its time."""
        layers, places = ([each.row() for each in rows] for rows in (self.layers, self.places))
        return work_of(self.name, self.steps, layers, places, ratios)


class _Sent(_Table):
    sender: str = Field(alias="from")
    receiver: str = Field(alias="to")
    online_bytes: int = Field(ge=0)
    offline_bytes: int = Field(ge=0)


class _Phase(_Counts):
    wall_seconds: float = Field(gt=0)
    sent: list[_Sent]

    def ratios(self) -> tuple[float, float]:
        """Part of the online bytes in the busier direction between the evaluators, and of the
        dealt bytes to the evaluator that gets more.
        """
        one, two = EVALUATORS
        between = {(sent.sender, sent.receiver): sent for sent in self.sent}

        def most(ends: Sequence[tuple[Role, Role]], kind: str) -> int:
            links = [between[pair] for pair in ends if pair in between]
            return max((int(getattr(link, kind)) for link in links), default=0)

        online = sum(sent.online_bytes for sent in self.sent)
        offline = sum(sent.offline_bytes for sent in self.sent)
        busier = most([(one, two), (two, one)], "online_bytes")
        favoured = most([(Role.DEALER, one), (Role.DEALER, two)], "offline_bytes")
        return busier / online if online else EVEN, favoured / offline if offline else DEALT

    def computed(self) -> float:
        """Seconds an evaluator computed in one step, while nothing was in transit to it."""
        return sum(row.seconds.get(COMPUTE, 0.0) for row in self.layers) / self.steps


class _Traced(_Table):
    tree: str
    lanes: int = Field(ge=1)
    draft: int | None = Field(default=None, ge=0)
    phases: list[_Counts]


class _Chosen(_Table):
    tree: str
    lanes: int = Field(ge=1)


class _Settings(_Chosen):
    approximation: str
    further: _Chosen | None = None

    def tree_at(self, phase: int) -> str:
        """The tree of the first step, or of those after it."""
        return self.further.tree if self.further and phase else self.tree

    def label(self, phases: int) -> str:
        """The tree, or those of both kinds of step."""
        trees = dict.fromkeys(map(self.tree_at, range(phases)))
        return " then ".join(trees)


class _Route(_Table):
    round_trip_ms: float
    bandwidth_mbit: float | None
    jitter_ms: float = 0.0

    def route(self) -> Route:
        """In seconds and bits a second. Raises ConfigError."""
        bandwidth = None if self.bandwidth_mbit is None else self.bandwidth_mbit * 1e6
        return Route(self.round_trip_ms / 1e3, bandwidth, self.jitter_ms / 1e3)


class _Link(_Route):
    between: tuple[str, str]


class _Network(_Route):
    name: str
    links: list[_Link] = Field(default_factory=list)

    def network(self) -> Network:
        """The network. Raises ConfigError."""
        links: list[tuple[Ends, Route]] = [(link.between, link.route()) for link in self.links]
        known = {ANY, *Role}
        for ends, _ in links:
            if not set(ends) <= known:
                raise ConfigError(f"a link between {' and '.join(ends)}: no such roles")
        return Network(self.name, self.route(), tuple(links))


class _Profile(_Table):
    model: str
    network: _Network | None
    settings: _Settings
    tokens_in: int = Field(ge=1)
    draft: int = Field(default=0, ge=0)
    phases: list[_Phase] = Field(min_length=1, max_length=2)
    variants: list[_Traced] = Field(default_factory=list)


def read_profile(path: Path, accepted: float = 0.0) -> Request:
    """The request in a file with a profile's JSON.

    accepted: how many of the tokens that a step proposed would stay on average.

    Raises:
        ConfigError: the file is missing, no JSON, or no profile.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path} is not a profile: it has more than {_MOST_BYTES >> 20} MB")
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: {_GIVE}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path} is no JSON: {_GIVE}") from None
    return request_of(data, str(path), accepted)


def request_of(data: object, where: str, accepted: float = 0.0) -> Request:
    """The request in a profile's JSON, with the variants that it knows.

    Its computation is what rounds, bytes and waiting for the dealer do not explain of the measured
    time; that of other variants is taken to be the same.

    Args:
        where: what the data is called in errors. accepted: as for `read_profile`.

    Raises:
        ConfigError: it is no profile, or more tokens would stay than were proposed.
    """
    try:
        profile = _Profile.model_validate(data)
    except ValidationError as error:
        fault = first_fault(error)
        place = f"{fault.place}: " if fault.place else ""
        raise ConfigError(f"{where} is not a profile: {place}{fault.problem}; {_AGAIN}") from None
    known = (profile.draft if each.draft is None else each.draft for each in profile.variants)
    draft = Draft(max((profile.draft, *known)), accepted)
    try:
        return _request(profile, draft.accepted)
    except ConfigError as error:
        raise ConfigError(f"{where} is not a profile: {error}; {_AGAIN}") from None


def request_of_profile(profile: Profile) -> Request:
    """The request of a profile that was just made."""
    return request_of(json.loads(json.dumps(profile.to_public())), "the profile")


def _request(profile: _Profile, accepted: float) -> Request:
    """Variants with another draft than the recorded one are left out if nothing would stay of it:
    they would only take longer.
    """
    network = profile.network.network() if profile.network else None
    works = _measured(profile.phases, network)
    settings = profile.settings
    label = settings.label(len(profile.phases))
    variants = [Variant(label, settings.lanes, works, profile.draft)]
    variants += [
        other
        for traced in profile.variants
        if (other := _alike(traced, profile, works)).draft == profile.draft or accepted
        if (other.tree, other.lanes, other.draft) != (label, settings.lanes, profile.draft)
    ]
    where = network.describe() if network else "in memory, no network"
    walls = ", ".join(f"{p.name} {p.wall_seconds / p.steps:.3g} s" for p in profile.phases)
    source = f"recorded ({where}): what rounds, bytes and the dealer do not explain of {walls}"
    found = (
        replace(each, works=yielding(each.works, 1 + min(accepted, each.draft)))
        for each in variants
    )
    return Request(profile.model, profile.tokens_in, True, source, tuple(found))


def _measured(phases: Sequence[_Phase], network: Network | None) -> tuple[Work, ...]:
    """One step of each phase, with the computation that explains its time."""
    works = [phase.work(phase.ratios()) for phase in phases]
    found: list[Work] = []
    for phase, work in zip(phases, works, strict=True):
        wall, step = phase.wall_seconds / phase.steps, _following(work.step, found, phase)
        found.append(replace(work, step=fitted(step, wall, network, phase.computed())))
    return tuple(found)


def _following(step: Step, before: Sequence[Work], phase: _Phase) -> Step:
    """The step, which comes after others."""
    return replace(step, after=before[0].step, count=phase.steps) if before else step


def _alike(traced: _Traced, profile: _Profile, works: Sequence[Work]) -> Variant:
    """Another variant, with the computation of the recorded one, or as much more or less as its
    rounds and bytes would take on the machine of `REFERENCE`.
    """
    phases, settings = profile.phases, profile.settings
    if [phase.name for phase in traced.phases] != [phase.name for phase in phases]:
        raise ConfigError("its variants have other phases")
    found: list[Work] = []
    for index, (counts, phase, work) in enumerate(zip(traced.phases, phases, works, strict=True)):
        other, recorded = counts.work(phase.ratios()), phase.work(phase.ratios())
        least = _least(settings.tree_at(index), recorded)
        ratio = _least(traced.tree, other) / least if least else 1.0
        spent = ratio * work.step.computation
        step = _following(replace(other.step, computation=spent), found, phase)
        found.append(replace(other, step=step))
    draft = profile.draft if traced.draft is None else traced.draft
    return Variant(traced.tree, traced.lanes, tuple(found), draft)


def _least(tree: str, work: Work) -> float:
    """Seconds of a step on the machine of `REFERENCE`, without products; 0 for an unknown tree."""
    speed = next((each for known, each in REFERENCE.items() if known == tree), None)
    if speed is None:
        return 0.0
    nbytes = sum(row.online + row.offline for row in work.places)
    return speed.seconds(work.step.messages, nbytes)
