"""The settings of a request, from the options of the command line."""

from models.programs.steps import AUTO, Auto, RequestSettings
from protocols.base.lane import APPROXIMATIONS, TREES, Settings
from protocols.errors import ConfigError
from puma_actors.cli.options import Choice, RunChoice

MOST_LANES = 1024


def settings_of(choice: RunChoice, *, secret_logits: bool = False) -> RequestSettings:
    """The settings that the options stand for. Raises ConfigError for unusable lanes."""
    return RequestSettings(
        next(known for known in APPROXIMATIONS if known == choice.approximation),
        next((known for known in TREES if known == choice.tree), AUTO),
        _lanes(choice.lanes),
        "argmax" if secret_logits else "logits",
    )


def fixed_settings_of(choice: Choice) -> Settings:
    """The `Settings` that the options stand for."""
    return Settings(
        next(known for known in APPROXIMATIONS if known == choice.approximation),
        next(known for known in TREES if known == choice.tree),
    )


def _lanes(text: str) -> int | Auto:
    if text == AUTO:
        return AUTO
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:5]) <= MOST_LANES):
        raise ConfigError(f"--lanes {text!r}: give auto, or a whole number from 1 to {MOST_LANES}")
    return int(text)
