"""The settings of a request, from the options of the command line."""

from protocols.base.lane import APPROXIMATIONS, TREES, Settings
from puma_actors.cli.options import Choice, RunChoice


def settings_of(choice: Choice, *, secret_logits: bool = False) -> Settings:
    """The `Settings` that the options stand for."""
    return Settings(
        next(known for known in APPROXIMATIONS if known == choice.approximation),
        next(known for known in TREES if known == choice.tree),
        choice.lanes if isinstance(choice, RunChoice) else 1,
        "argmax" if secret_logits else "logits",
    )
