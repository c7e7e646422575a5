"""Ask three parties to prepare units.

    options = PrepareOptions(tokens_in=64, tokens_out=32, count=10)
    made = await prepare_units(config, "llama", options)

The caller learns how it goes on, and nothing else; it may leave at any time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import anyio

from models.programs.head_layers import check_rows, default_rows
from models.programs.plan import Plan
from models.programs.program import Batch, Rows
from models.programs.steps import StepSettings
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, PumaError, RemoteProtocolError, StoreError
from puma_actors.base.texts import printable
from puma_actors.hosts.caller import call_all, hang_up, shake_hands
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.prepared.messages import (
    MOST_UNITS,
    MadeMessage,
    MakeMessage,
    ProgressMessage,
    RefusedMessage,
    parse,
)
from puma_actors.hosts.stores.manifest import check_name
from puma_actors.hosts.unanimous import agreed_plan
from puma_actors.prepare.sizes import Sizes, unit_sizes
from puma_actors.prepare.unit import MOST_STEPS, Shape, shape_of
from puma_actors.roles.actor import Actor, ActorOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareOptions:
    """Which units to prepare.

    Attributes:
        tokens_in: the exact number of tokens of a prompt. tokens_out: the most new tokens.
        count: how many units.
        settings: of all steps. By default with the fewest rounds: what is dealt costs nothing
            later.
    """

    tokens_in: int
    tokens_out: int = 1
    count: int = 1
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        for name, least, most in (
            ("tokens_in", 1, 1 << 20),
            ("tokens_out", 1, MOST_STEPS),
            ("count", 1, MOST_UNITS),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} = {value!r}: use a whole number from {least} to {most}")


@dataclass(frozen=True, slots=True)
class Preparing:
    """How far the work has come.

    Attributes:
        shape, count: what is prepared. sizes: of one unit, by prediction.
        units: whole ones. steps: dealt steps of the next one.
        seconds: since the work began.
    """

    shape: Shape
    count: int
    sizes: Sizes
    units: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> float:
        """Part of the work, from 0 to 1."""
        return (self.units + min(self.steps / self.shape.steps, 1.0)) / self.count

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest takes at this pace, once there is one."""
        return self.seconds * (1 / self.done - 1) if self.done else None


@dataclass(frozen=True, slots=True)
class PreparedUnits:
    """What was prepared.

    Attributes:
        nbytes: on the disk of each party, by role, of all these units.
    """

    shape: Shape
    count: int
    seconds: float
    nbytes: dict[Role, int] = field(default_factory=dict)


Report = Callable[[Preparing], None]


def _quiet(found: Preparing) -> None:
    """Report nothing."""


async def prepare_units(
    config: ClusterConfig,
    model: str,
    options: PrepareOptions,
    *,
    role: Role = Role.OWNER,
    report: Report = _quiet,
) -> PreparedUnits:
    """Have the three parties prepare units for a stored model; returns when all can be used. When
    this is cancelled, whole units stay.

    Args:
        role: owner or client, whose certificate is used.
        report: called before the work begins, with the predicted bytes, and then as it goes on.

    Raises:
        StoreError: a party has no room for them. Busy: a party is full now. ConfigError: the model
            has no such requests, or a party refuses. TransportError, PeerFailed: a party is away.
    """
    calls = await call_all(config, role, "prepare", model=check_name(model))
    try:
        plan, tokens = agreed_plan(calls)
        shape = _shape(plan, tokens, options)
        sizes = await anyio.to_thread.run_sync(unit_sizes, plan, shape, Role.EVALUATOR_A)
        begun = Preparing(shape, options.count, sizes)
        report(begun)
        asker = _Asker(role, ActorOptions(name=config.identity(role).name), begun, report)
        asker.attach(await shake_hands(config, role, calls))
        try:
            await asker.run()
        except PumaError:
            if asker.refusal is None:
                raise
        if asker.refusal is not None:
            raise asker.refusal
    finally:
        await hang_up(calls)
    return PreparedUnits(shape, options.count, asker.seconds, asker.nbytes)


def _shape(plan: Plan, tokens: int, options: PrepareOptions) -> Shape:
    """The shape of the units; checked as the requests that will use them."""
    total, config = options.tokens_in + options.tokens_out - 1, plan.config
    if total > min(tokens, config.max_positions):
        raise ConfigError(
            f"{options.tokens_in} tokens in and {options.tokens_out} out are too many: the model "
            f"has {config.max_positions} positions, and the parties take {tokens} tokens at a time"
        )
    generates = config.head == "causal-lm"
    if options.tokens_out > 1 and not generates:
        raise ConfigError(f"tokens_out = {options.tokens_out}: a {config.head} model has no answer")
    rows: Rows = "last" if generates else default_rows(config)
    check_rows(config, rows)
    batch = Batch((options.tokens_in,), rows)
    shape = shape_of(batch, options.tokens_out, StepSettings.of(options.settings))
    assert shape is not None
    return shape


class _Asker(Actor):
    """The caller's side of the session."""

    def __init__(self, role: Role, options: ActorOptions, begun: Preparing, report: Report) -> None:
        super().__init__(role, options)
        self.refusal: PumaError | None = None
        self.nbytes = dict.fromkeys(COMPUTING, 0)
        self.seconds = 0.0
        self._begun = begun
        self._report = report
        self._steps = 0
        self._made = dict.fromkeys(COMPUTING, 0)
        self._started = 0.0

    async def main(self) -> None:
        self._started = time.monotonic()
        message = MakeMessage(shape=self._begun.shape, count=self._begun.count)
        for role in COMPUTING:
            await self.scheduler.send_control(role, message.header())
        while self._units < self._begun.count and self.refusal is None:
            role, header, _ = await self.scheduler.control()
            self._take(role, parse(header))
            self._tell()

    @property
    def _units(self) -> int:
        """Units that can be used."""
        return min(self._made.values())

    def _take(self, role: Role, message: object) -> None:
        if isinstance(message, ProgressMessage) and role.is_dealer:
            self._steps = message.number * self._begun.shape.steps + message.steps
        elif isinstance(message, MadeMessage) and message.number == self._made[role]:
            self._made[role] += 1
            self.nbytes[role] += message.nbytes
        elif isinstance(message, RefusedMessage):
            kind = StoreError if message.full else Busy if message.busy else ConfigError
            self.refusal = kind(f"{role}: {printable(message.text)}")
        else:
            raise RemoteProtocolError(f"{role} sent something else than how the work goes on")

    def _tell(self) -> None:
        self.seconds = time.monotonic() - self._started
        steps = max(0, self._steps - self._units * self._begun.shape.steps)
        self._report(replace(self._begun, units=self._units, steps=steps, seconds=self.seconds))
