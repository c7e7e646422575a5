"""Factors divided among workers, against the same factors in one place. No Dask here: actors are
objects of this process.
"""

import pickle
from typing import Any

import anyio
import cloudpickle
import numpy as np
import pytest
from helpers import A, B, D, generator
from hypothesis import given
from hypothesis import strategies as st

from protocols.arithmetic import right_factor
from protocols.base.ring import Words
from protocols.base.shares import Role, SecretTensor
from protocols.errors import LocalProtocolError, WorkersError
from protocols.kernels.matmul import matmul_into
from protocols.kernels.rows import matmul_rows
from protocols.linear import mask_key, weight_mask
from puma_actors.base.compute import Compute
from puma_actors.hosts.workers import placement as placing
from puma_actors.hosts.workers.placement import Placed, Placement, rows_of
from puma_actors.hosts.workers.rows import HeldRows

SEEDS = (bytes(range(32)), bytes(range(32, 64)))
NUMBER = 7


class Here:
    """An actor of this process, which notes its calls."""

    alive = True

    def __init__(self) -> None:
        self.rows, self.calls = HeldRows(), []
        self.wrong: Any = None

    async def call(self, method: str, *args: Any) -> Any:
        self.calls.append((method, args))
        return getattr(self.rows, method)(*args)

    async def product(self, method: str, number: int, x: Words, shape: tuple[int, int]) -> Words:
        if self.wrong is not None:
            raise self.wrong
        result = await self.call(method, number, x)
        assert result.shape == shape
        result.flags.writeable = False  # as what Dask receives
        return result


class Listed:
    """Masked words in memory."""

    def __init__(self, words: Words) -> None:
        self.words = words.reshape(-1)

    def expect(self) -> None: ...

    def read(self, start: int, out: Words) -> None:
        out[:] = self.words[start : start + out.size]


class Up:
    """A connection on which everything answers."""

    alive = True

    async def ping(self, address: str) -> None: ...


def parts(role: Role, values: Words) -> tuple[Words, Words | None, list[bytes]]:
    """A party's factor, its masked words and its keys."""
    one, two = (weight_mask(seed, NUMBER, values.shape) for seed in SEEDS)
    first, second = (mask_key(seed, NUMBER) for seed in SEEDS)
    m = values + one + two
    if role is D:
        return right_factor(SecretTensor(role, one, two)), None, [first, second]
    own, key = (one, first) if role is A else (two, second)
    return right_factor(SecretTensor(role, m, own)), m, [key]


def spread(count: int, role: Role = A) -> tuple[Placement, list[Here]]:
    actors = {f"tls://worker:{each}": Here() for each in range(count)}
    return Placement(role, Up(), actors, Compute(1)), list(actors.values())


async def put(placement: Placement, role: Role, values: Words) -> Placed:
    _, m, keys = parts(role, values)
    return await placement.put(NUMBER, values.shape, None if m is None else Listed(m), keys)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    rows=st.integers(1, 9),
    workers=st.integers(1, 5),
    piece=st.integers(1, 400),
    block=st.integers(1, 600),
    role=st.sampled_from([A, B, D]),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_one_machine(shape, rows, workers, piece, block, role, seed):
    rng = generator(seed)
    values, left, right = (
        rng.integers(0, 2**64, size, dtype=np.uint64)
        for size in (shape, (rows, shape[0]), (rows, shape[1]))
    )
    factor, _, _ = parts(role, values)
    out = np.empty((rows, shape[1]), dtype=np.uint64)
    matmul_into(left, factor, out, 0, shape[1])

    async def check() -> None:
        placement, _ = spread(workers, role)
        held = await put(placement, role, values)
        found = await held.matmul(left)
        np.testing.assert_array_equal(found, out)
        found += np.uint64(1)  # the result is the caller's own
        np.testing.assert_array_equal(await held.matmul_rows(right), matmul_rows(right, factor))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "PIECE", piece)
        patch.setattr(placing, "BLOCK", block)
        anyio.run(check)


@given(rows=st.integers(0, 1000), workers=st.integers(1, 9))
def test_rows_are_divided_evenly(rows, workers):
    found = rows_of(rows, workers)
    assert [each for part in found for each in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in found]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("role", [A, B, D])
async def test_workers_get_only_what_their_party_knows_and_need(role):
    """Masked words and the keys of one tensor's own masks: no seed, no key of the other half."""
    values = generator().integers(0, 2**64, (12, 5), dtype=np.uint64)
    _, m, keys = parts(role, values)
    placement, actors = spread(3, role)
    await put(placement, role, values)
    sent = []
    for actor in actors:
        for method, args in actor.calls:
            if method == "open":
                assert args == (NUMBER, (4, 5))
                continue
            number, _, size, words, given, start = args
            assert (number, given) == (NUMBER, keys)
            assert (words is None) == (role is D)
            if m is not None:
                np.testing.assert_array_equal(words, m.reshape(-1)[start : start + size])
            sent += range(start, start + size)
    assert sent == list(range(values.size))  # each word to one worker


async def test_no_more_than_a_block_is_on_its_way(monkeypatch):
    monkeypatch.setattr(placing, "BLOCK", 3 * 10 * 2)
    placement, actors = spread(3)
    held = await put(placement, A, np.ones((6, 10), dtype=np.uint64))
    for actor in actors:
        actor.calls.clear()
    await held.matmul(np.ones((5, 6), dtype=np.uint64))
    await held.matmul_rows(np.ones((5, 10), dtype=np.uint64))
    for actor in actors:
        assert [args[1].shape[0] for _, args in actor.calls] == [2, 2, 1, 2, 2, 1]


async def test_a_fresh_actor_multiplies_by_nothing():
    """One that took a lost worker's place must not answer with something else."""
    placement, (_, two) = spread(2)
    held = await put(placement, A, np.ones((4, 3), dtype=np.uint64))
    two.rows = HeldRows()
    with pytest.raises(WorkersError, match=r"worker:1 \(this worker does not hold all its rows"):
        await held.matmul(np.ones((1, 4), dtype=np.uint64))


def test_a_panel_is_used_only_if_it_is_whole():
    held = HeldRows()
    held.open(1, (2, 2))
    held.fill(1, 0, 3, np.zeros(3, dtype=np.uint64), [b"k" * 16], 0)
    for product in (held.matmul, held.matmul_rows):
        with pytest.raises(LocalProtocolError, match="not hold all its rows of tensor 1"):
            product(1, np.zeros((1, 2), dtype=np.uint64))
    with pytest.raises(LocalProtocolError, match="words 2 of tensor 1 came out of turn"):
        held.fill(1, 2, 1, None, [b"k" * 16], 2)
    with pytest.raises(LocalProtocolError, match="words 3 of tensor 1 do not fit"):
        held.fill(1, 3, 2, None, [b"k" * 16], 3)


async def test_one_lost_worker_ends_all_use_and_frees_the_others():
    placement, (one, _) = spread(2)
    held = await put(placement, A, np.ones((4, 3), dtype=np.uint64))
    one.wrong = OSError("secret words")
    x = np.ones((1, 4), dtype=np.uint64)
    with pytest.raises(WorkersError, match=r"evaluator-a lost its worker .*:0 \(OSError\): open a"):
        await held.matmul(x)
    assert placement.workers == []
    uses = (lambda: held.matmul(x), lambda: placement.put(9, (1, 1), None, []), placement.watch)
    for use in uses:
        with pytest.raises(WorkersError, match="lost its worker tls://worker:0"):
            await use()


async def test_a_loss_that_the_scheduler_reports_is_noticed():
    placement, (one, _) = spread(2)
    one.alive = False
    with pytest.raises(WorkersError, match=r"worker:0 \(the scheduler lost it\)"):
        await placement.watch()


async def test_a_silent_worker_is_noticed(monkeypatch):
    async def ping(address: str) -> None:
        if address.endswith("1"):
            raise TimeoutError

    placement, _ = spread(2)
    monkeypatch.setattr(placement._connection, "ping", ping)
    with pytest.raises(WorkersError, match=r"worker:1 \(TimeoutError\)"):
        await placement.watch()


async def test_a_check_ends_when_all_have_answered():
    placement, _ = spread(2)
    await placement.check()
    assert not placement.lost


def test_what_is_pickled_of_ours_is_a_name():
    """Dask sends it to the scheduler and the workers: no function, nothing that it closes over."""
    for dumps in (pickle.dumps, cloudpickle.dumps):
        packed = dumps(HeldRows)
        assert pickle.loads(packed) is HeldRows
        assert b"puma_actors.hosts.workers.rows" in packed
        assert len(packed) < 100
