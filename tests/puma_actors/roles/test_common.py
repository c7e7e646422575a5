"""Parties of one process that keep nothing twice, against parties that each keep their own."""

import itertools
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import A, B, D, generator
from hypothesis import given
from hypothesis import strategies as st

from models.programs.plan import Parameter
from models.programs.sharing import SEED_BYTES, mask_parameter, seeds_of
from protocols import streamed
from protocols.errors import LocalProtocolError
from protocols.linear import Table, Weight
from puma_actors.roles import common
from puma_actors.roles.common import Common, InCommon
from puma_actors.roles.upload import InMemory

SEEDS = {1: bytes(SEED_BYTES), 2: bytes(range(SEED_BYTES))}
ROLES = (A, B, D)


def held(keep, kind, matrix, order=ROLES):
    """What each party holds of a tensor, which arrives at them in some order."""
    words = mask_parameter("w", 0, kind, matrix, list(SEEDS.values()))
    parameter = Parameter(kind, matrix.shape)
    found, half = {}, words.size // 2
    for role in order:
        kept = keep(role)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(common, "parameters_of", lambda config: {"w": parameter})
            kept.check_size(SimpleNamespace(config=None))
        for which in seeds_of(role):
            kept.seed(which, memoryview(SEEDS[which]))
        if role is not D:
            flat = words.reshape(-1)
            for start, part in ((0, flat[:half]), (half, flat[half:])):
                kept.words(0, start, words.size, memoryview(part).cast("B"))
        found[role] = kept.hold(0, parameter)
    return found


def in_common(shared):
    return lambda role: InCommon(role, shared)


def product(factor, x, turned):
    if isinstance(factor, streamed.Panels):
        return factor.matmul_rows(x) if turned else factor.matmul(x)
    return x @ (factor.T if turned else factor)


@given(
    kind=st.sampled_from(["weight", "table"]),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    panel=st.integers(1, 200),
    order=st.permutations(ROLES),
    seed=st.integers(0, 99),
)
def test_products_and_tables_are_those_of_separate_parties(kind, shape, panel, order, seed):
    rng = generator(seed)
    matrix = rng.uniform(-4, 4, shape).astype(np.float32)
    apart, joined = held(InMemory, kind, matrix), held(in_common(Common()), kind, matrix, order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "PANEL_WORDS", panel)
        for role, turned in itertools.product(ROLES, (False, True)):
            x = rng.integers(0, 2**64, (3, shape[1 if turned else 0]), dtype=np.uint64)
            expected = product(apart[role].factor, x, turned)
            np.testing.assert_array_equal(product(joined[role].factor, x, turned), expected)
            if kind == "table":
                for mine, own in zip(joined[role].halves, apart[role].halves, strict=True):
                    np.testing.assert_array_equal(mine, own)


def test_nothing_is_held_twice():
    matrix = np.ones((20, 10), dtype=np.float32)
    found = held(in_common(Common()), "table", matrix)
    assert isinstance(found[A], Table)
    (m, first), (same, second), (again, last) = (found[role].halves for role in ROLES)
    assert m is same and first is again and second is last
    assert isinstance(found[B].factor, streamed.Derived)
    assert found[B].factor.parts.first is found[A].factor
    assert found[B].factor.parts.dealer is found[D].factor
    assert isinstance(held(in_common(Common()), "weight", matrix)[A], Weight)


@pytest.mark.parametrize("kind", ["weight", "table"])
def test_what_everybody_has_taken_is_let_go(kind):
    shared = Common()
    found = held(in_common(shared), kind, np.ones((20, 10), dtype=np.float32))
    factor = weakref.ref(found[A].factor.high if kind == "table" else found[A].factor)
    assert factor() is not None
    del found
    assert factor() is None


def test_a_factor_is_not_derived_before_the_others_are_there():
    matrix = np.ones((2, 2), dtype=np.float32)
    found = held(in_common(Common()), "weight", matrix, (B, A))
    with pytest.raises(LocalProtocolError, match="do not have the weight yet"):
        found[B].factor.matmul(np.ones((1, 2), dtype=np.uint64))
