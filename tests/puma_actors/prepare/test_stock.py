"""What a client asks for, from what it knows of the units."""

import pytest
from units import SHAPE

from models.programs.program import Batch
from models.programs.steps import RequestSettings
from protocols.errors import ConfigError
from puma_actors.hosts.admission import ModelEntry, StockEntry
from puma_actors.hosts.unanimous import common_stock
from puma_actors.prepare.stock import Stock
from puma_actors.prepare.unit import Shape

PROMPT = Batch((SHAPE.tokens,), "last")
LONG = SHAPE.model_copy(update={"steps": 9, "lanes": 2, "further_lanes": 2})


def test_units_are_counted_off_until_none_is_left() -> None:
    stock = Stock({SHAPE: 2})
    assert [stock.ask(SHAPE) for _ in range(3)] == ["auto", "auto", "never"]
    assert stock.counts == {}
    assert Stock({SHAPE: 1}).ask(SHAPE.model_copy(update={"tokens": 4})) == "never"
    assert Stock({SHAPE: 1}, "never").ask(SHAPE) == "never"
    assert Stock({}, "require").ask(SHAPE) == "require"


def test_what_can_have_no_units() -> None:
    assert Stock({SHAPE: 1}).ask(None) == "never"
    with pytest.raises(ConfigError, match="no prepared units for several sequences"):
        Stock({SHAPE: 1}, "require").ask(None)
    with pytest.raises(ConfigError, match="prepared = 'always': use one of auto, never, require"):
        Stock({}, "always")  # type: ignore[arg-type]


def test_settings_are_those_of_the_unit_that_leaves_least_over() -> None:
    stock = Stock({LONG: 1, SHAPE: 1})
    free = RequestSettings()
    assert stock.settings(PROMPT, 2, free) == SHAPE.settings()
    assert stock.settings(PROMPT, 3, free) == LONG.settings()
    assert stock.settings(PROMPT, 10, free) is None
    assert stock.settings(PROMPT, 2, RequestSettings(lanes=2)) == LONG.settings()
    assert stock.settings(PROMPT, 2, RequestSettings(tree="traffic")) is None
    assert stock.settings(Batch((SHAPE.tokens,), "all"), 1, free) is None
    assert stock.settings(Batch((SHAPE.tokens, 1), "last"), 1, free) is None
    assert Stock({SHAPE: 1}, "never").settings(PROMPT, 2, free) is None


def test_only_what_all_parties_have_counts() -> None:
    def entry(**counts: int) -> ModelEntry:
        shapes: dict[str, Shape] = {"short": SHAPE, "long": LONG}
        held = [StockEntry(shape=shapes[key], count=n, bytes=9) for key, n in counts.items()]
        return ModelEntry(name="tiny", prepared=held)

    entries = [entry(short=3, long=1), entry(short=2, long=1), entry(short=4)]
    assert common_stock(entries) == {SHAPE: 2}
    assert common_stock([*entries, None]) == {}
