"""Which requests a party accepts: those that its model answers, and that it has room for."""

from typing import Protocol

from models.programs.head_layers import check_rows
from models.programs.plan import Plan
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.roles.messages import InferMessage


class Admission(Protocol):
    """Decides which requests a party accepts, beyond the model's own limits."""

    def check(self, request: InferMessage) -> None:
        """Check a request before it is compared with the model.

        Raises:
            RemoteProtocolError: no honest client makes this request; the session ends.
        """

    def admit(self, request: InferMessage, plan: Plan) -> None:
        """Accept a request that has been checked and fits the model.

        Raises:
            Busy, ConfigError: the party refuses it, for now or forever; the session goes on.
        """

    def release(self, number: int) -> None:
        """Note that the admitted request with this number has ended."""


class AdmitAll:
    """Admits every request."""

    def check(self, request: InferMessage) -> None:
        """As `Admission`."""

    def admit(self, request: InferMessage, plan: Plan) -> None:
        """As `Admission`."""

    def release(self, number: int) -> None:
        """As `Admission`."""


def check_request(message: InferMessage, plan: Plan) -> None:
    """Raise RemoteProtocolError if the model has no answer to this; an honest client knows that."""
    batch, config = message.batch(), plan.config
    if max(batch.lengths) + message.steps - 1 > config.max_positions:
        raise RemoteProtocolError(
            f"the client asked for more than {config.max_positions} positions"
        )
    if message.draft and config.head != "causal-lm":
        raise RemoteProtocolError(f"the client asked for a draft of a {config.head} model")
    types = int(getattr(config, "type_vocab_size", 0))
    if batch.types is not None and max(batch.types) >= max(1, types):
        raise RemoteProtocolError(f"token types go up to {types - 1}")
    try:
        check_rows(config, batch.rows)
    except ConfigError as error:
        raise RemoteProtocolError(f"the client's request is unusable: {error}") from None
