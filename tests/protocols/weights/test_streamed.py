"""Factors made panel by panel, against the same factors in memory."""

import os
import random

import numpy as np
import pytest
from helpers import A, B, D, generator
from hypothesis import given
from hypothesis import strategies as st
from secure_models import infer, random_values, share_model, tiny_config

from models.programs.families import parameters_of
from models.programs.sharing import (
    hold_parameter,
    mask_parameter,
    seeds_of,
    stream_parameter,
)
from protocols import streamed
from protocols.arithmetic import right_factor
from protocols.base.prf import Stream, add_stream, kernel_source, library_source
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.aes.aesni import available
from protocols.kernels.matmul import matmul_into
from protocols.kernels.rows import matmul_rows
from protocols.linear import mask_key, weight_mask
from protocols.streamed import Streamed

SEEDS = (bytes(range(32)), bytes(range(32, 64)))
NUMBER = 7
SOURCES = [kernel_source, library_source] if available() else [library_source]


class Listed:
    """Masked words in memory, which note what is read."""

    def __init__(self, words):
        self.words, self.reads, self.expected = words.reshape(-1), [], 0

    def expect(self):
        self.expected += 1

    def read(self, start, out):
        self.reads.append((start, out.size))
        out[:] = self.words[start : start + out.size]


def factors(values):
    """Each party's factor in memory, and the same streamed."""
    one, two = (weight_mask(seed, NUMBER, values.shape) for seed in SEEDS)
    m = values + one + two
    keys = {which: mask_key(seed, NUMBER) for which, seed in enumerate(SEEDS)}
    known = {D: (0, 1), A: (0,), B: (1,)}
    kept = {D: (one, two), A: (m, one), B: (m, two)}
    for role, pair in kept.items():
        masked = None if role is D else Listed(m)
        own = tuple(keys[which] for which in known[role])
        yield right_factor(SecretTensor(role, *pair)), Streamed(role, values.shape, own, masked)


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 30)),
    rows=st.integers(1, 9),
    panel=st.integers(1, 700),
    seed=st.integers(0, 1000),
)
def test_products_equal_those_in_memory(shape, rows, panel, seed):
    rng = generator(seed)
    values, left, right = (
        rng.integers(0, 2**64, size, dtype=np.uint64)
        for size in (shape, (rows, shape[0]), (rows, shape[1]))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "PANEL_WORDS", panel)
        for factor, made in factors(values):
            out = np.empty((rows, shape[1]), dtype=np.uint64)
            matmul_into(left, factor, out, 0, shape[1])
            np.testing.assert_array_equal(made.matmul(left), out)
            np.testing.assert_array_equal(made.matmul_rows(right), matmul_rows(right, factor))


def test_a_product_reads_each_word_once_in_order_and_says_so_before():
    values = generator().integers(0, 2**64, (33, 5), dtype=np.uint64)
    _, (_, made), _ = factors(values)
    made.matmul(np.ones((1, 33), dtype=np.uint64))
    assert made.masked.expected == 1
    places = [place for start, size in made.masked.reads for place in range(start, start + size)]
    assert places == list(range(values.size))


def test_no_more_than_a_panel_is_held(monkeypatch):
    monkeypatch.setattr(streamed, "PANEL_WORDS", 64)
    values = generator().integers(0, 2**64, (100, 7), dtype=np.uint64)
    _, (_, made), _ = factors(values)
    made.matmul(np.ones((2, 100), dtype=np.uint64))
    assert max(size for _, size in made.masked.reads) <= 64


@given(
    position=st.integers(0, 3000) | st.integers(2**40, 2**40 + 3),
    count=st.integers(0, 1300),
    factor=st.sampled_from([1, -1, -2, 3, 2**63]),
)
def test_a_stream_may_begin_anywhere(position, count, factor):
    key = bytes(range(16))
    before = position if position < 10_000 else 0
    whole = Stream(key).words((before + count,))[before:] if before else None
    start = np.arange(count, dtype=np.uint64)
    out = start.copy()
    add_stream(key, position, factor, out)
    for source in SOURCES:
        drawn = source(key, position)(count, 64)
        np.testing.assert_array_equal(out, start + np.uint64(factor % 2**64) * drawn)
        if whole is not None:
            np.testing.assert_array_equal(drawn, whole)


@pytest.mark.parametrize("role", [A, B, D])
def test_parts_that_are_not_a_partys_own_are_refused(role):
    masked = Listed(np.zeros((2, 2), dtype=np.uint64))
    keys = (b"k" * 16,) * (1 if role is D else 2)
    with pytest.raises(LocalProtocolError, match="cannot make a factor"):
        Streamed(role, (2, 2), keys, None if role is D else masked)
    with pytest.raises(LocalProtocolError, match="cannot make a factor"):
        Streamed(
            role, (2, 2), (b"k" * 16,) * (2 if role is D else 1), masked if role is D else None
        )


def test_whole_models_give_the_same_bits(monkeypatch):
    """Same keys, same masks: a run with streamed factors is the run with those in memory."""
    config = tiny_config(tied=True)
    model = share_model(config, random_values(config))
    seeds = dict(enumerate(SEEDS, start=1))
    results = []
    for streams in (False, True):
        model.held = {role: {} for role in (D, A, B)}
        for number, (name, p) in enumerate(parameters_of(config).items()):
            m = mask_parameter(name, number, p.kind, model.floats[name], list(seeds.values()))
            for role, held in model.held.items():
                own = {which: seeds[which] for which in seeds_of(role)}
                if streams and p.kind in ("weight", "table"):
                    masked = None if role is D else Listed(m)
                    held[name] = stream_parameter(role, number, p, masked, own)
                else:
                    held[name] = hold_parameter(role, number, p, None if role is D else m, own)
        monkeypatch.setattr(os, "urandom", random.Random(3).randbytes)
        results.append(infer(model, [[5, 9, 30], [7]]).chunks)
    for plain, made in zip(*results, strict=True):
        np.testing.assert_array_equal(plain, made)
