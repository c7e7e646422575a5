"""Which tokens attend to which: spans, slopes of positions, and their batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.programs.decoders.falcon import alibi_slopes
from models.programs.program import Batch, spans_of
from protocols.drivers.ops import Slopes
from protocols.errors import ConfigError

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)


@given(lengths, st.booleans(), st.sampled_from(["all", "first", "last"]))
def test_no_token_looks_into_another_sequence(sizes, causal, rows):
    batch = Batch(sizes, rows)
    wanted = batch.wanted if rows != "all" else None
    spans = spans_of(batch, causal=causal, wanted=wanted)
    assert len(spans) == len(sizes)
    ends = np.cumsum(sizes)
    row = 0
    for span, size, end in zip(spans, sizes, ends, strict=True):
        assert (span.context.start, span.context.stop) == (end - size, end)
        asking = range(size) if rows == "all" else [0 if rows == "first" else size - 1]
        assert (span.rows.start, span.rows.stop) == (row, row + len(asking))
        row = span.rows.stop
        expected = np.arange(size) <= np.array(asking)[:, None] if causal else True
        np.testing.assert_array_equal(span.mask, np.broadcast_to(expected, span.mask.shape))
        assert span.bias is None


@given(st.integers(0, 20), st.integers(1, 6), st.integers(1, 8))
def test_windows_look_no_further_back(start, size, window):
    (span,) = spans_of(Batch((size,)), start, causal=True, window=window)
    assert span.context == slice(0, start + size)
    for row, seen in enumerate(span.mask):
        places = np.flatnonzero(seen)
        assert places[-1] == start + row
        assert len(places) == min(window, start + row + 1)


@given(lengths)
def test_rows_of_a_batch(sizes):
    ends = np.cumsum(sizes)
    assert Batch(sizes, "last").wanted.tolist() == (ends - 1).tolist()
    assert Batch(sizes, "first").wanted.tolist() == [0, *ends[:-1]]
    assert Batch(sizes, "mean").wanted.tolist() == list(range(sum(sizes)))
    assert Batch(sizes).results == sum(sizes)
    assert {Batch(sizes, rows).results for rows in ("first", "last", "mean", "unit")} == {
        len(sizes)
    }
    assert Batch(sizes).positions(3).tolist() == [3 + i for n in sizes for i in range(n)]


@pytest.mark.parametrize("sizes", [(), (0,), (2, 0), (-1,)])
def test_empty_batches_are_refused(sizes):
    with pytest.raises(ConfigError, match="empty"):
        Batch(sizes)


def test_slopes_are_rounded_as_transformers_rounds_them():
    torch = pytest.importorskip("torch")
    from transformers.models.falcon.modeling_falcon import build_alibi_tensor

    for heads in (1, 3, 4, 8, 12):
        mask = torch.ones((1, 37), dtype=torch.int64)
        expected = build_alibi_tensor(mask, heads, torch.bfloat16).float().numpy()
        found = Slopes(alibi_slopes(heads), 1.0).bias(37)
        assert found.shape == (heads, 1, 37)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    scaled = Slopes(alibi_slopes(4), 0.25).bias(37)
    np.testing.assert_array_equal(scaled, 0.25 * Slopes(alibi_slopes(4), 1.0).bias(37))
