"""Structured logs on top of the standard library's, so that a program that uses this package
decides where they go; by default only warnings reach stderr.

Events carry ids, sizes, rounds and durations; never a share, a token or a text.
"""

import logging
import sys
from typing import Any

import structlog

from puma_actors.base.texts import printable

NAME = "puma_actors"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

_json = False
_PLAIN = structlog.processors.LogfmtRenderer()
_JSON = structlog.processors.JSONRenderer()
_FIRST = ("event", "level", "timestamp")


def _ordered(logger: Any, method: str, event: Any) -> Any:
    """Fields in a fixed order: event, level and time first, then the others by name."""
    return {name: event[name] for name in (*_FIRST, *sorted(event.keys() - set(_FIRST)))}


def _render(logger: Any, method: str, event: Any) -> Any:
    """One line without escape sequences, even if parts of it come from a peer."""
    return printable(str((_JSON if _json else _PLAIN)(logger, method, event)))


log: Any = structlog.wrap_logger(
    logging.getLogger(NAME),
    wrapper_class=structlog.stdlib.BoundLogger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _ordered,
        _render,
    ],
)


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the current `sys.stderr`: a program may replace it and close the former one."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        return sys.stderr


def show_logs(verbose: int, *, as_json: bool = False) -> None:
    """Print logs on stderr, from warnings up (0), information (1) or everything (2); as lines of
    keys and values, or as one JSON object per line for programs.
    """
    global _json
    _json = as_json and not (sys.stderr and sys.stderr.isatty())
    logger = logging.getLogger(NAME)
    logger.setLevel(_LEVELS[min(verbose, len(_LEVELS) - 1)])
    logger.propagate = False
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
