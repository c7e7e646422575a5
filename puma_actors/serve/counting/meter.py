"""What can be counted. These classes count nothing: they are for a gateway without prometheus."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import anyio

from protocols.base.shares import Role
from puma_actors.api.life import Cluster
from puma_actors.api.usage import Token, Usage
from puma_actors.roles.peers import Exchanged
from puma_actors.serve.errors import UNKNOWN, ApiError, told


class Counted:
    """One request, from its arrival to its end."""

    def called(self) -> None:
        """Its turn has come. A request that must begin again is counted once."""

    def took(self, token: Token) -> None:
        """A token of its answer is there."""

    def cost(self, usage: Usage) -> None:
        """What it took, whether it was finished or not."""

    def exchanged(self, peers: Mapping[Role, Exchanged]) -> None:
        """What this gateway and each party sent each other for it, and how long it waited."""

    def answered(self, reason: str) -> None:
        """Its answer is complete; `reason`: why it ended, in OpenAI's words."""

    def cancelled(self) -> None:
        """Its client has gone."""

    @contextmanager
    def exchanging(self, cluster: Cluster) -> Iterator[None]:
        """A block that computes the request on a session; counts what it exchanges, finished or
        not.
        """
        before = dict(cluster.client.peers)
        try:
            yield
        finally:
            now = cluster.client.peers
            self.exchanged({role: now[role] - each for role, each in before.items()})

    @contextmanager
    def watching(self) -> Iterator[None]:
        """A block that is cancelled when the client goes."""
        try:
            yield
        except anyio.get_cancelled_exc_class():
            self.cancelled()
            raise


class Meter:
    """Counts for one gateway."""

    def came(self, model: str) -> Counted:
        """A request has been accepted."""
        return Counted()

    def refused(self, reason: str) -> None:
        """A request was refused, or failed; `reason`: a word, see `reason_of`."""

    def page(self) -> tuple[bytes, str]:
        """All numbers, and the type of the content.

        Raises:
            ApiError: the extra is not installed.
        """
        raise ApiError(
            UNKNOWN, "there are no metrics without one more package: pip install "
            "'puma-actors[metrics]'"
        )  # fmt: skip


def reason_of(error: Exception) -> str:
    """A word for an error: never a part of its text, which may be about the request."""
    answer = told(error)
    return answer.code or f"http_{int(answer.status)}"
