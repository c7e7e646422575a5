"""Names for the entry functions of protocols, by which observed lanes know them."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from protocols.base.lane import Lane

T = TypeVar("T")
P = ParamSpec("P")


Entry: TypeAlias = Callable[Concatenate[Lane, P], Coroutine[Any, Any, T]]


def protocol(label: str) -> Callable[[Entry[P, T]], Entry[P, T]]:
    """Decorates the entry function of a protocol, which lanes that are observed then know by
    `label`.
    """

    def named(function: Entry[P, T]) -> Entry[P, T]:
        @wraps(function)
        def call(lane: Lane, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
            return lane.span(label, function(lane, *args, **kwargs))

        return call

    return named
