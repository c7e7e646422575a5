"""The settings of a request: as they are wished for, and as its steps have them.

    wished = RequestSettings(approximation="fast")        tree and lanes are chosen later
    wished.variants()                                     every `Settings` that it leaves open
    StepSettings(first, further)                          what the parties are told

What is best for a prompt of many tokens is not best for a step of one, so the first step of a
request may have another tree and other lanes than those after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeAlias

from protocols.base.lane import APPROXIMATIONS, TREES, Approximation, Reveal, Settings, Tree
from protocols.errors import ConfigError

Auto: TypeAlias = Literal["auto"]
AUTO: Auto = "auto"


@dataclass(frozen=True, slots=True)
class StepSettings:
    """The settings of a request's first step, and of those after it.

    Raises:
        ConfigError: they differ in more than tree and lanes.
    """

    first: Settings
    further: Settings

    def __post_init__(self) -> None:
        if replace(self.further, tree=self.first.tree, lanes=self.first.lanes) != self.first:
            raise ConfigError(
                f"steps of one request with {self.first} and {self.further}: they may differ in "
                "tree and lanes only"
            )

    @classmethod
    def of(cls, given: "Settings | StepSettings | None") -> "StepSettings":
        """Settings of all steps stand for themselves; None: the usual ones."""
        if isinstance(given, StepSettings):
            return given
        usual = given or Settings()
        return cls(usual, usual)

    def at(self, step: int) -> Settings:
        """The settings of a step; 0 is the first."""
        return self.further if step else self.first


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """What is wished for every request; see `protocols.base.lane.Settings` for the rest.

    Attributes:
        tree: one of `TREES` for all steps; "auto": for each kind of step the one that is
            predicted to take least time.
        lanes: their number for all steps; "auto" likewise.
    """

    approximation: Approximation = APPROXIMATIONS[0]
    tree: Tree | Auto = AUTO
    lanes: int | Auto = AUTO
    reveal: Reveal = "logits"
    block: int = Settings().block

    @classmethod
    def of(cls, given: "Self | Settings | None") -> "RequestSettings":
        """`Settings` hold for all steps; None leaves the choice open.

        Raises:
            ConfigError: it is something else.
        """
        if given is None:
            return cls()
        if isinstance(given, Settings):
            return cls(given.approximation, given.tree, given.lanes, given.reveal, given.block)
        if not isinstance(given, RequestSettings):
            raise ConfigError(
                f"settings are {type(given).__name__}: give a Settings or a RequestSettings"
            )
        return given

    @property
    def open(self) -> bool:
        """Whether anything is left to choose."""
        return AUTO in (self.tree, self.lanes)

    def variants(self, lanes: Sequence[int] = (1,)) -> tuple[Settings, ...]:
        """Every `Settings` that fits; of the numbers of `lanes`, unless one is given."""
        trees = TREES if self.tree == AUTO else (self.tree,)
        counts = lanes if self.lanes == AUTO else (self.lanes,)
        return tuple(
            Settings(self.approximation, tree, count, self.reveal, self.block)
            for tree in trees
            for count in counts
        )
