"""Freed memory stays with a process that computes, unless its user or the system say otherwise."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

from puma_actors.base import allocator

FAULTS = """
import json, resource
import numpy as np
from puma_actors.base.allocator import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        for size in (25_000_000, 9_000_000):
            np.zeros(size // 8, dtype=np.uint64).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
kept = keep_freed()
faults()
print(json.dumps([kept, usual, faults()]))
"""


def has_mallopt() -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt)
    except (AttributeError, OSError):
        return False


def run(**environment: str) -> tuple[bool, int, int]:
    clean = {name: value for name, value in os.environ.items() if name not in allocator._CHOSEN}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, usual, after = json.loads(done.stdout)
    return kept, usual, after


@pytest.mark.skipif(not has_mallopt(), reason="the C library has no such setting")
def test_the_system_need_not_clear_the_same_pages_again():
    kept, usual, after = run()
    assert kept
    assert after < usual / 5, (usual, after)


def test_a_user_may_choose():
    kept, usual, after = run(MALLOC_TRIM_THRESHOLD_="100000")
    assert not kept
    assert after > usual / 5


async def test_a_library_without_these_functions(monkeypatch):
    caches = allocator._function, allocator.keep_freed
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed()
    await allocator.give_back()
    for cached in caches:
        cached.cache_clear()
