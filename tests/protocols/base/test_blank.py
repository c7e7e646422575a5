"""Arrays without content have the shapes and types of real ones, and take no memory."""

import numpy as np
import pytest

from protocols.base.blank import Blank, blank
from protocols.base.shares import Role, SecretTensor, concat, constant, stack

HUGE = (1 << 20, 1 << 20)
ONE = np.uint64(1)
INDEX = np.array([[0, 1, 1], [2, 0, 2]])

KEPT = [
    lambda x: x + x,
    lambda x: x - ONE,
    lambda x: ONE - x[0],
    lambda x: x[:, None] * x,
    lambda x: x << np.uint64(3),
    lambda x: x ^ np.ones(x.shape[-1], dtype=np.uint64),
    lambda x: x > ONE,
    lambda x: x.sum(axis=1, dtype=np.uint64),
    lambda x: x.sum(axis=-1, keepdims=True),
    lambda x: x.sum(axis=(0, 2)),
    lambda x: np.concatenate([x, np.ones_like(x)], axis=1),
    lambda x: np.concatenate([x, x], axis=None),
    lambda x: np.stack([x, x], axis=-1),
    lambda x: np.broadcast_to(x, (2, *x.shape)),
    lambda x: np.zeros_like(x),
    lambda x: x.copy(),
    lambda x: x.reshape(-1, 2),
    lambda x: x.transpose(2, 0, 1),
    lambda x: x[..., 1:, ::2],
    lambda x: x[:, INDEX],
    lambda x: x[1:, INDEX, INDEX],
    lambda x: x[..., INDEX],
    lambda x: x[INDEX],
]
OTHERS = [
    lambda x: np.cumsum(x, axis=1),
    lambda x: np.take_along_axis(x, np.zeros((3, 4, 1), dtype=np.intp), axis=2),
    lambda x: np.repeat(x, 2, axis=0),
    lambda x: x[x > ONE],
    lambda x: x.astype(np.float64),
]


@pytest.mark.parametrize("number", range(len(KEPT) + len(OTHERS)))
def test_shapes_and_types_are_those_of_zeros(number):
    operation = (KEPT + OTHERS)[number]
    expected = operation(np.zeros((3, 4, 6), dtype=np.uint64))
    got = operation(blank((3, 4, 6)))
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    if number < len(KEPT):
        assert isinstance(got, Blank)
        assert not any(got.strides)


def test_sharings_of_any_size_take_no_memory():
    empty = blank(HUGE)
    x = SecretTensor(Role.TRACE, empty, empty)
    y = concat([x + x, -x], 0)
    assert y.shape == (2 << 20, 1 << 20)
    assert stack([x, x], 1).shape == (1 << 20, 2, 1 << 20)
    assert x.times(np.uint64(3)).drop(4).scale_up(2).sum(0).shape == HUGE[1:]
    assert x.scatter((4, *HUGE), 0).shape == (4, *HUGE)
    assert constant(Role.TRACE, empty).broadcast((2, *HUGE)).shape == (2, *HUGE)


def test_nothing_can_be_written():
    with pytest.raises(ValueError, match="read-only"):
        blank((2, 2))[0, 0] = 1
