"""Ports for tests that must know one before it is listened on."""

import atexit
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

_BLOCK = 100
_OWN = range(12_000, 32_000, _BLOCK)
"""Blocks of ports below those that systems hand out by themselves (Linux: from 32768)."""
_turn = itertools.count()


def free_ports(count: int) -> list[int]:
    """Ports that nobody else will take before they are listened on: no other test process, and no
    connection that the system gives a port of its own. Among those, a caller could even be
    connected to itself.
    """
    found: list[int] = []
    for port in _ports():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} ports of this process's {_BLOCK} are free")


def free_port() -> int:
    return free_ports(1)[0]


def _ports() -> Iterator[int]:
    """The block's ports, in turn: one that was just used is used again as late as can be."""
    first, _ = _block()
    for _ in range(_BLOCK):
        yield first + next(_turn) % _BLOCK


@cache
def _block() -> tuple[int, socket.socket]:
    """The first port of a block that is this process's own, and what others see that by: the UDP
    port of that number, held as long as the process lives.
    """
    start = os.getpid() % len(_OWN)
    for first in (*_OWN[start:], *_OWN[:start]):
        mark = socket.socket(type=socket.SOCK_DGRAM)
        try:
            mark.bind(("127.0.0.1", first))
        except OSError:
            mark.close()
        else:
            atexit.register(mark.close)
            return first, mark
    raise OSError(f"no block of {_BLOCK} ports between {_OWN.start} and {_OWN.stop} is free")
