"""What a client knows of the prepared units: which requests may use one, and with what settings.

stock = Stock(counts, "auto")
settings = stock.settings(batch, steps, wished)      those of a unit that fits, or None
stock.ask(shape)                                     what to ask the parties for
"""

from collections.abc import Mapping
from typing import get_args

from models.programs.program import Batch
from models.programs.steps import RequestSettings, StepSettings
from protocols.errors import ConfigError
from puma_actors.prepare.unit import Prepared, Shape


def check_prepared(wish: str) -> None:
    """Check what is wished for.

    Raises:
        ConfigError: it is none of "auto", "never" and "require".
    """
    if wish not in get_args(Prepared):
        raise ConfigError(f"prepared = {wish!r}: use one of {', '.join(get_args(Prepared))}")


class Stock:
    """Args:
    counts: how many units of each shape all parties have, as far as is known.
    wish: whether requests use units.
    """

    def __init__(self, counts: Mapping[Shape, int], wish: Prepared = "auto") -> None:
        check_prepared(wish)
        self.wish = wish
        self._counts = dict(counts)

    @property
    def counts(self) -> dict[Shape, int]:
        """How many there are, of each shape."""
        return {shape: count for shape, count in self._counts.items() if count > 0}

    def settings(self, batch: Batch, steps: int, wished: RequestSettings) -> StepSettings | None:
        """The settings of a unit that a request could use, within what is wished for."""
        if self.wish == "never" or len(batch.lengths) != 1 or batch.types is not None:
            return None
        fitting = [
            shape
            for shape in self.counts
            if (shape.tokens, shape.rows) == (batch.tokens, batch.rows)
            and shape.steps >= steps
            and shape.allowed(wished)
        ]
        return min(fitting, key=lambda shape: shape.steps).settings() if fitting else None

    def ask(self, shape: Shape | None) -> Prepared:
        """What to ask the parties for; a unit that may be used is counted off.

        Args:
            shape: of the request; None if there are no units for such requests.

        Raises:
            ConfigError: a unit is required for a request that can have none.
        """
        if shape is None and self.wish == "require":
            raise ConfigError(
                "prepared = 'require': there are no prepared units for several sequences, for "
                "token types or for a draft"
            )
        if shape is None or self.wish == "never":
            return "never"
        fitting = [each for each in self.counts if each.serves(shape)]
        if fitting:
            self._counts[min(fitting, key=lambda each: each.steps)] -= 1
        return self.wish if fitting or self.wish == "require" else "never"
