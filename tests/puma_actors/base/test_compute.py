"""Where calls run."""

import threading

from puma_actors.base.compute import Compute


async def test_small_work_runs_where_it_is_asked_for():
    compute = Compute(threads=1, threshold=100)
    here = threading.get_ident()
    assert await compute.run(99, threading.get_ident) == here
    assert await compute.run(100, threading.get_ident) != here


async def test_what_is_offloaded_leaves_the_event_loop_whatever_it_takes():
    compute = Compute(threads=1, threshold=1 << 62)
    assert await compute.offload(threading.get_ident) != threading.get_ident()
    assert await compute.offload(divmod, 7, 3) == (2, 1)
