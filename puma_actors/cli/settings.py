"""The settings of a request, from the options of the command line."""

from protocols.base.lane import APPROXIMATIONS, TREES, Settings
from puma_actors.cli.options import Approximation, Tree


def settings_of(
    approximation: Approximation, tree: Tree, lanes: int = 1, *, secret_logits: bool = False
) -> Settings:
    """`Settings` whose words are those that the options stand for."""
    return Settings(
        next(known for known in APPROXIMATIONS if known == approximation),
        next(known for known in TREES if known == tree),
        lanes,
        "argmax" if secret_logits else "logits",
    )
