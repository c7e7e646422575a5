"""`LocalCluster` for code without an event loop: notebooks and scripts."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from protocols.errors import ConfigError
from protocols.ring import Floats
from puma_actors.cluster import LocalCluster, Token, Usage


class PrivateModel(AbstractContextManager["PrivateModel"]):
    """`LocalCluster` for notebooks and scripts: the same requests, called without `await`.

    with PrivateModel.from_pretrained(path) as model:
        print(model.generate("What is ...", max_new_tokens=32))

    Outside `with`, call `close` when done.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self._portal_context = start_blocking_portal()
        self._portal: BlockingPortal | None = self._portal_context.__enter__()
        self._running = self._portal.wrap_async_context_manager(cluster)
        try:
            self._running.__enter__()
        except BaseException as error:
            self._portal = None
            # Told of an interruption, it ends what still runs instead of waiting for it.
            self._portal_context.__exit__(type(error), error, error.__traceback__)
            raise

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path, **options: Any) -> Self:
        """As `LocalCluster.from_pretrained`, and ready when it returns."""
        return cls(LocalCluster.from_pretrained(path_or_name, **options))

    @property
    def usage(self) -> Usage:
        """What the last request took."""
        return self.cluster.usage

    def call(self, function: Any, *args: Any) -> Any:
        """Run an async function on the cluster's event loop, and wait for its result.

        Interrupted (Ctrl-C, or a notebook's stop button), it ends what runs before it raises: the
        next request would wait for that otherwise.
        """
        if self._portal is None:
            raise ConfigError("the model is closed: load it again")
        ended = threading.Event()

        async def run() -> Any:
            try:
                return await function(*args)
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if future.cancel():  # not what `run` raised: it still runs
                ended.wait()
            raise

    def forward(self, input_ids: Sequence[int] | Any, **options: Any) -> Floats:
        """As `LocalCluster.forward`."""

        async def run() -> Floats:
            return await self.cluster.forward(input_ids, **options)

        result: Floats = self.call(run)
        return result

    def generate(self, prompt: str | Sequence[int], **options: Any) -> str:
        """The whole answer."""
        return "".join(token.text for token in self.stream(prompt, **options))

    def stream(self, prompt: str | Sequence[int], **options: Any) -> Iterator[Token]:
        """As `LocalCluster.generate`."""
        tokens = self.cluster.generate(prompt, **options)

        async def following() -> Token | None:
            return await anext(tokens, None)

        try:
            while (token := self.call(following)) is not None:
                yield token
        finally:
            if self._portal is not None:
                self.call(tokens.aclose)

    def close(self) -> None:
        """End the actors and free the shares."""
        self.__exit__(None, None, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._portal is None:
            return
        try:
            self._running.__exit__(kind, error, trace)
        finally:
            self._portal = None
            self._portal_context.__exit__(None, None, None)
