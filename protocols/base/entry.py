"""Names for the entry functions of protocols, which observed lanes record."""

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from protocols.base.lane import Lane

T = TypeVar("T")
P = ParamSpec("P")


Entry: TypeAlias = Callable[Concatenate[Lane, P], Coroutine[Any, Any, T]]


def protocol(label: str) -> Callable[[Entry[P, T]], Entry[P, T]]:
    """Decorator for the entry function of a protocol: observed lanes record calls as `label`."""

    def named(function: Entry[P, T]) -> Entry[P, T]:
        @wraps(function)
        def call(lane: Lane, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
            task = function(lane, *args, **kwargs)
            return lane.span(label, task) if lane.observed else task

        return call

    return named
