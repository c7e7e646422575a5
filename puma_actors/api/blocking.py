"""`LocalCluster` for code without an event loop: notebooks and scripts."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from models.programs.program import Rows
from models.texts.requested import GenerateOptions
from models.tokens.sampling import SamplingConfig
from protocols.base.ring import Floats
from protocols.errors import ConfigError
from puma_actors.api.local import LocalCluster, Token, Usage
from puma_actors.api.options import ClusterOptions
from puma_actors.api.prompts import Prompt
from puma_actors.base.background import Background


class PrivateModel(AbstractContextManager["PrivateModel"]):
    """`LocalCluster` for notebooks and scripts: the same requests, called without `await`.

    with PrivateModel.from_pretrained(path) as model:
        print(model.generate("What is ...", max_new_tokens=32))

    Without `with`, end it with `close`. Otherwise it ends when its last reference goes away or the
    interpreter exits.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        if not isinstance(cluster, LocalCluster):
            raise ConfigError(
                f"a PrivateModel takes a LocalCluster, not {type(cluster).__name__}: "
                "use PrivateModel.from_pretrained(path) or PrivateModel.from_model(model)"
            )
        self.cluster = cluster
        self._background = Background(cluster)
        # A model that is garbage-collected is stopped too; nothing here may reference it.
        weakref.finalize(self, self._background.ask_to_stop).atexit = False

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | Path, *, head: str | None = None, **options: Unpack[ClusterOptions]
    ) -> Self:
        """Like `LocalCluster.from_pretrained`; the model is ready when it returns."""
        return cls(LocalCluster.from_pretrained(path_or_name, head=head, **options))

    @classmethod
    def from_model(
        cls,
        model: object,
        tokenizer: object | None = None,
        *,
        head: str | None = None,
        **options: Unpack[ClusterOptions],
    ) -> Self:
        """Like `LocalCluster.from_model`; the model is ready when it returns."""
        return cls(LocalCluster.from_model(model, tokenizer, head=head, **options))

    @property
    def usage(self) -> Usage:
        """Cost of the last request."""
        return self.cluster.usage

    def call(self, function: Any, *args: Any) -> Any:
        """Run an async function on the cluster's event loop, and wait for its result.

        When interrupted (Ctrl-C, or a notebook's stop button), it ends the running request before
        it raises: otherwise the next request would wait for it.

        Raises:
            ConfigError: the model is closed. Any error from the function.
        """
        return self._background.call(function, *args)

    def forward(
        self,
        input_ids: Sequence[int] | Sequence[Sequence[int]] | Any,
        *,
        rows: Rows | None = None,
        types: Sequence[int] | None = None,
    ) -> Floats:
        """Like `LocalCluster.forward`."""

        async def run() -> Floats:
            return await self.cluster.forward(input_ids, rows=rows, types=types)

        result: Floats = self.call(run)
        return result

    def generate(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingConfig | None = None,
        *,
        raw: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> str:
        """The whole answer; arguments as for `LocalCluster.generate`."""
        return "".join(token.text for token in self.stream(prompt, sampling, raw=raw, **options))

    def stream(
        self,
        prompt: Prompt | None = None,
        sampling: SamplingConfig | None = None,
        *,
        raw: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Token]:
        """Stream tokens like `LocalCluster.generate`."""
        tokens = self.cluster.generate(prompt, sampling, raw=raw, **options)

        async def following() -> Token | None:
            return await anext(tokens, None)

        try:
            while (token := self.call(following)) is not None:
                yield token
        finally:
            if self._background.running:
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
        self._background.stop(error)
