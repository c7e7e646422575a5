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
from puma_actors.profiling.sweep import COMPUTE, HIDDEN
from puma_actors.profiling.whatif.timing import fitted
from puma_actors.profiling.whatif.variants import (
    DEALT,
    EVEN,
    Request,
    Row,
    Variant,
    Work,
    led,
    work_of,
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
    phases: list[_Counts]


class _Settings(_Table):
    approximation: str
    tree: str
    lanes: int = Field(ge=1)


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
    phases: list[_Phase] = Field(min_length=1, max_length=2)
    variants: list[_Traced] = Field(default_factory=list)


def read_profile(path: Path) -> Request:
    """The request in a file with a profile's JSON.

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
    return request_of(data, str(path))


def request_of(data: object, where: str) -> Request:
    """The request in a profile's JSON, with the variants that it knows.

    Its computation is what rounds, bytes and waiting for the dealer do not explain of the measured
    time; that of other variants is taken to be the same.

    Args:
        where: what the data is called in errors.

    Raises:
        ConfigError: it is no profile.
    """
    try:
        profile = _Profile.model_validate(data)
    except ValidationError as error:
        fault = first_fault(error)
        place = f"{fault.place}: " if fault.place else ""
        raise ConfigError(f"{where} is not a profile: {place}{fault.problem}; {_AGAIN}") from None
    try:
        return _request(profile)
    except ConfigError as error:
        raise ConfigError(f"{where} is not a profile: {error}; {_AGAIN}") from None


def _request(profile: _Profile) -> Request:
    network = profile.network.network() if profile.network else None
    works = _measured(profile.phases, network)
    settings = profile.settings
    variants = [Variant(settings.tree, settings.lanes, works)]
    variants += [
        _alike(traced, profile.phases, works)
        for traced in profile.variants
        if (traced.tree, traced.lanes) != (settings.tree, settings.lanes)
    ]
    where = network.describe() if network else "in memory, no network"
    walls = ", ".join(f"{p.name} {p.wall_seconds / p.steps:.3g} s" for p in profile.phases)
    source = f"recorded ({where}): what rounds, bytes and the dealer do not explain of {walls}"
    return Request(profile.model, profile.tokens_in, True, source, tuple(variants))


def _measured(phases: Sequence[_Phase], network: Network | None) -> tuple[Work, ...]:
    """One step of each phase, with the computation that explains its time."""
    works = led([phase.work(phase.ratios()) for phase in phases])
    found = []
    for phase, work in zip(phases, works, strict=True):
        wall = phase.wall_seconds / phase.steps
        step = fitted(work.step, wall, network, phase.computed())
        found.append(replace(work, step=step))
    return tuple(found)


def _alike(traced: _Traced, phases: Sequence[_Phase], works: Sequence[Work]) -> Variant:
    """Another variant, with the computation of the recorded one."""
    if [phase.name for phase in traced.phases] != [phase.name for phase in phases]:
        raise ConfigError("its variants have other phases")
    found = []
    for counts, phase, work in zip(traced.phases, phases, works, strict=True):
        other = counts.work(phase.ratios())
        step = replace(other.step, computation=work.step.computation)
        found.append(replace(other, step=step))
    return Variant(traced.tree, traced.lanes, led(found))
