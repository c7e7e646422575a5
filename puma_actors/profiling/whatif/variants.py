"""A request as `what-if` sees it: its steps under each tree and number of lanes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from protocols.base.events import Key
from protocols.base.lane import Settings
from protocols.base.meter import Meter
from protocols.errors import ConfigError
from puma_actors.planning.timing import Part, Step
from puma_actors.profiling.counts import declared, layer_of, place_of


@dataclass(frozen=True, slots=True)
class Row:
    """Counts of one layer or place in one step: rounds in a row, all rounds, bytes of all parties.

    `seconds` are those that an evaluator computed, if that was recorded.
    """

    name: str
    rounds: float
    exchanges: float
    online: float
    offline: float
    seconds: float | None = None

    def part(self, busier: float, favoured: float) -> Part:
        """The row as the model of time wants it.

        Args:
            busier, favoured: the parts of online bytes in the busier direction, and of dealt bytes
                to the evaluator that gets more.
        """
        sent, dealt = busier * self.online, favoured * self.offline
        return Part(self.name, self.rounds, self.exchanges, sent, dealt)

    def to_public(self) -> dict[str, Any]:
        """As JSON types, with the names of a profile's rows."""
        return {
            "name": self.name,
            "rounds": self.rounds,
            "exchanges": self.exchanges,
            "online_bytes": self.online,
            "offline_bytes": self.offline,
        }


@dataclass(frozen=True, slots=True)
class Work:
    """A step, and the counts by place with all layers together."""

    step: Step
    places: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft: how many tokens a step proposes, and how many of them stay on average.

    Raises:
        ConfigError: more stay than are proposed.
    """

    proposed: int
    accepted: float

    def __post_init__(self) -> None:
        if not 0 <= self.accepted <= self.proposed:
            raise ConfigError(
                f"{self.accepted:g} accepted of {self.proposed} proposed tokens: give at most as "
                "many as are proposed"
            )


@dataclass(frozen=True, slots=True)
class Variant:
    """The steps of a request under some settings: the first, then a further one if there is any.

    draft: how many tokens a further step proposes.
    """

    tree: str
    lanes: int
    works: tuple[Work, ...]
    draft: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose time is asked for.

    Attributes:
        tokens_in: length of the prompt. recorded: whether it ran.
        source: how the seconds of computation were obtained, as a sentence.
    """

    model: str
    tokens_in: int
    recorded: bool
    source: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True, slots=True)
class TracedPhase:
    """Declared counts of the steps of a phase, added up."""

    name: str
    steps: int
    layers: tuple[Row, ...]
    places: tuple[Row, ...]

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "name": self.name,
            "steps": self.steps,
            "layers": [row.to_public() for row in self.layers],
            "places": [row.to_public() for row in self.places],
        }


@dataclass(frozen=True, slots=True)
class Traced:
    """Declared counts of a request under other settings than it ran with, or with another number of
    tokens that a further step proposes.
    """

    tree: str
    lanes: int
    phases: tuple[TracedPhase, ...]
    draft: int = 0

    def to_public(self) -> dict[str, Any]:
        """As JSON types."""
        return {
            "tree": self.tree,
            "lanes": self.lanes,
            "draft": self.draft,
            "phases": [phase.to_public() for phase in self.phases],
        }


def traced_of(settings: Settings, meters: Sequence[Meter], first: str, draft: int = 0) -> Traced:
    """Counts of the first step, named `first`, and of all others together, each of which proposes
    `draft` tokens.
    """
    phases = [_phase(first, meters[:1])]
    if len(meters) > 1:
        phases.append(_phase("decode", meters[1:]))
    return Traced(settings.tree, settings.lanes, tuple(phases), draft)


def _phase(name: str, meters: Sequence[Meter]) -> TracedPhase:
    return TracedPhase(name, len(meters), _rows(layer_of, meters), _rows(place_of, meters))


def _rows(group: Callable[[Key], str], meters: Iterable[Meter]) -> tuple[Row, ...]:
    """In the order of the program."""
    found: dict[str, list[float]] = {}
    for meter in meters:
        counts = declared(meter)
        columns: tuple[Mapping[Key, int], ...] = (
            counts.critical,
            counts.exchanges,
            counts.online,
            counts.offline,
        )
        for key, _ in meter.story.charges:
            found.setdefault(group(key) or "between", [0.0] * len(columns))
        for column, values in enumerate(columns):
            for key, value in values.items():
                found[group(key) or "between"][column] += value
    return tuple(Row(name, *values) for name, values in found.items())


def work_of(
    name: str, steps: int, layers: Iterable[Row], places: Iterable[Row], ratios: tuple[float, float]
) -> Work:
    """One step of a phase: the mean of its steps. `ratios`: as for `Row.part`."""

    def each(row: Row) -> Row:
        return Row(
            row.name,
            row.rounds / steps,
            row.exchanges / steps,
            row.online / steps,
            row.offline / steps,
            None if row.seconds is None else row.seconds / steps,
        )

    parts = tuple(each(row).part(*ratios) for row in layers)
    return Work(Step(name, parts), tuple(each(row) for row in places))


def yielding(works: Sequence[Work], tokens: float) -> tuple[Work, ...]:
    """The same, with so many tokens of each further step."""
    first, *others = works
    further = (replace(work, step=replace(work.step, tokens=tokens)) for work in others)
    return first, *further
