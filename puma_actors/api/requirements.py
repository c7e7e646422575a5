"""What a client insists on, checked before anything of a prompt leaves."""

from typing import Literal, TypeAlias, get_args

from models.programs.plan import Weights
from protocols.errors import ConfigError

Requirement: TypeAlias = Literal["private-weights"]


def check_requirement(require: object) -> None:
    """Raise ConfigError unless it is None or a `Requirement`."""
    if require is not None and require not in get_args(Requirement):
        raise ConfigError(f"require = {require!r}: use 'private-weights', or leave it out")


def insist(require: Requirement | None, weights: Weights, what: str) -> None:
    """Raise ConfigError if a model is not as required. `what`: how an error names it."""
    if require == "private-weights" and weights == "public":
        raise ConfigError(
            f"{what} has public weights, and private-weights is required: nothing was sent; use "
            "another model, or do without the requirement"
        )
