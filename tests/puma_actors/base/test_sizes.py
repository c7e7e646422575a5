"""Amounts of memory as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import ConfigError
from puma_actors.base.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GB", 16 * 10**9),
        ("16g", 16 * 10**9),
        (" 1.5 GiB ", 3 * 2**29),
        ("800MB", 800 * 10**6),
        ("12kb", 12_000),
        ("2TiB", 2**41),
        ("123", 123),
    ],
)
def test_sizes(text, size):
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "0.0GB", "3x", "1e9", "16 GB RAM", "nan"])
def test_what_is_no_size_is_refused_by_name(text):
    with pytest.raises(ConfigError, match=r"--memory .* is not a size: give one like 16GB"):
        parse_size(text, "--memory")


@given(st.integers(1, 10**15 - 1))
def test_whole_numbers_are_bytes(size):
    assert parse_size(str(size), "--memory") in (size, int(float(size)))
