"""What becomes of memory that computations free: kept while they go on, given back afterwards.

    keep_freed()          once in a process that computes
    await give_back()     when a request has ended

The C library returns large blocks to the system as soon as they are free, and the system clears
every page that it hands out again: a fifth of the processor time of a long prompt. Other libraries
than glibc are left alone, and so is a user's own setting (`MALLOC_TRIM_THRESHOLD_` and others).
"""

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import anyio

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # <malloc.h>
_KEPT = 512 << 20
"""Bytes at the heap's end that stay with the process."""
_MAPPED = 32 << 20
"""Blocks from this many bytes on, such as a model's tables, are the system's; the most that older
releases of glibc take."""
_CHOSEN = ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@cache
def keep_freed() -> bool:
    """Keep up to half a gigabyte that was freed, in one heap for all threads: with several, each
    keeps its own. Returns whether the allocator can be told so, and the user did not choose.
    """
    tell = _function("mallopt", ctypes.c_int, ctypes.c_int, ctypes.c_int)
    if tell is None or any(name in os.environ for name in _CHOSEN):
        return False
    chosen = (_MMAP_THRESHOLD, _MAPPED), (_TRIM_THRESHOLD, _KEPT), (_ARENA_MAX, 1)
    return all(tell(name, value) for name, value in chosen)


async def give_back() -> None:
    """Return freed memory from the allocator to the system, in a thread: glibc would keep a third
    of a session's gigabytes. Without glibc this does nothing.
    """
    trim = _function("malloc_trim", ctypes.c_int, ctypes.c_size_t)
    if trim is not None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(trim, 0)


@cache
def _function(name: str, result: Any, *arguments: Any) -> Callable[..., int] | None:
    """A function of the C library, if it has it."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError):
        return None
    found.argtypes, found.restype = list(arguments), result
    made: Callable[..., int] = found
    return made
