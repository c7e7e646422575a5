"""Structured logs over the standard library's, so that a program that uses this package decides
where they go; without its say, warnings alone reach stderr.

Events carry ids, sizes, rounds and durations; never a share, a token or a text.
"""

import logging
import sys
from typing import Any

import structlog

NAME = "puma_actors"
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)

log: Any = structlog.wrap_logger(
    logging.getLogger(NAME),
    wrapper_class=structlog.stdlib.BoundLogger,
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
    ],
)


def show_logs(verbose: int) -> None:
    """Print logs on stderr, from warnings up (0), information (1) or everything (2)."""
    logger = logging.getLogger(NAME)
    logger.setLevel(_LEVELS[min(verbose, len(_LEVELS) - 1)])
    logger.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
