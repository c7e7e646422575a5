"""Work cut into blocks: where the cuts lie, and that nothing but rounds can tell."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import floats, generator, own, share
from hypothesis import given
from hypothesis import strategies as st
from privacy_cases import check_case, column
from secure_models import (
    batches_of,
    family_values,
    infer,
    infer_batch,
    share_model,
    steps,
    tiny_config,
    tiny_model,
)

from models.owner.calibrate import plain_run
from models.programs.program import Batch, spans_of
from protocols.base.blocks import row_blocks, score_pieces, waves
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING
from protocols.drivers.lockstep import run_parties
from protocols.drivers.ops import Ranges, Slopes
from protocols.drivers.secure import Secure
from protocols.drivers.trace import trace
from protocols.functions.attention import AttentionRange

IDS = [3, 17, 0, 39, 17, 8, 25, 1, 30]
TOLERANCE = 0.01
SIZES = st.integers(1, 60)


@given(SIZES, SIZES, st.integers(1, 400))
def test_blocks_of_rows_are_few_and_small(rows, columns, most):
    blocks = row_blocks(rows, columns, most)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    heights = [block.stop - block.start for block in blocks]
    assert max(heights) <= max(1, most // columns)
    assert max(heights) - min(heights) <= 1
    assert len(blocks) == -(-rows // max(1, most // columns))


@st.composite
def masks(draw):
    """Causal ones, with and without a window, and ones that hide nothing."""
    start, size = draw(st.integers(0, 20)), draw(SIZES)
    window = draw(st.none() | st.integers(1, 30))
    batch = Batch((size,))
    (span,) = spans_of(batch, start, causal=draw(st.booleans()) or window is not None,
                       window=window)  # fmt: skip
    return span.mask


@given(masks(), st.integers(1, 5), st.integers(1, 3000))
def test_pieces_hold_every_score_that_counts(mask, heads, most):
    pieces = score_pieces(mask, heads, most)
    covered = np.zeros(mask.shape, dtype=np.int64)
    for piece in pieces:
        covered[piece.rows, piece.columns] += 1
        one_row = piece.rows.stop - piece.rows.start == 1
        assert one_row or piece.size(heads) <= most
        assert mask[piece.rows, piece.columns].any(axis=1).all()
    assert (covered[mask] == 1).all()
    assert covered.max() == 1
    if heads * mask.size <= most:
        assert len(pieces) == 1 and covered.all()


def test_a_causal_mask_in_pieces_is_half_the_work():
    mask = np.tri(2048, dtype=np.bool_)
    pieces = score_pieces(mask, 32, 1 << 21)
    total = sum(piece.size(32) for piece in pieces)
    assert total < 0.55 * 32 * mask.size
    assert len(pieces) <= 1 + total // (1 << 20) + 12


@pytest.mark.parametrize("tokens", [256, 701])
def test_a_causal_mask_that_fits_is_cut_where_it_saves_work(tokens):
    """And its pieces still run together: they take no more rounds."""
    mask = np.tri(tokens, dtype=np.bool_)
    pieces = score_pieces(mask, 9, 1 << 23)
    sizes = [piece.size(9) for piece in pieces]
    assert sum(sizes) < 0.7 * 9 * mask.size
    assert len(waves(sizes, 1 << 23)) == 1 < len(pieces) < 10
    assert len(score_pieces(np.ones((tokens, tokens), dtype=np.bool_), 9, 1 << 23)) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 120))
def test_waves_take_every_job_once(sizes, most):
    runs = waves(sizes, most)
    assert [job for run in runs for job in range(len(sizes))[run]] == list(range(len(sizes)))
    for run in runs:
        assert run.stop - run.start == 1 or sum(sizes[run]) <= most
    for run, after in pairwise(runs):
        assert sum(sizes[run]) + sizes[after.start] > most


@given(SIZES, st.integers(0, 20), st.none() | st.integers(1, 30))
def test_masks_are_those_of_distances(size, start, window):
    (span,) = spans_of(Batch((size,)), start, causal=True, window=window)
    behind = (start + np.arange(size))[:, None] - np.arange(start + size)
    allowed = (behind >= 0) & (behind < (window or 1000))
    assert np.array_equal(span.mask, allowed)


# -- results and costs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model(tiny_config())


@pytest.mark.parametrize("block", [1, 40, 200, 1 << 21])
@pytest.mark.parametrize(
    "settings", [Settings(), Settings(tree="traffic", lanes=2), Settings(lanes=3)]
)
def test_blocks_change_no_result_and_no_declared_cost(model, block, settings):
    settings = replace(settings, block=block)
    chunks = [IDS[:6], IDS[6:7], IDS[7:]]
    generation = infer(model, chunks, settings)
    logits = np.concatenate(generation.chunks)
    expected = plain_run(model.config, model.floats, [IDS])
    assert np.ptp(expected) > 1
    assert np.abs(logits - expected).max() <= TOLERANCE
    cost, _ = trace(lambda lane: steps(lane, model, batches_of(chunks)), settings)
    assert cost == generation.outcome.cost


def test_blocks_cost_rounds_and_save_traffic(model):
    whole, cut = (infer(model, [IDS], Settings(block=b)).outcome.cost for b in (1 << 21, 120))
    assert cut.rounds > whole.rounds
    assert cut.online + cut.offline < whole.online + whole.offline


def test_the_best_token_of_many_rows_in_blocks(model):
    whole, cut = (infer(model, [IDS], Settings(reveal="argmax", block=b)) for b in (1 << 21, 90))
    assert np.array_equal(whole.chunks[0], cut.chunks[0])
    assert cut.outcome.cost.rounds > whole.outcome.cost.rounds


@pytest.mark.parametrize(
    ("model_type", "head"), [("bert", "none"), ("falcon", "causal-lm"), ("mistral", "causal-lm")]
)
def test_batches_of_every_kind_of_mask(model_type, head, tmp_path):
    shared = share_model(*family_values(model_type, head, tmp_path))
    texts = [[5, 9, 3, 7, 11, 2], [4, 8], [6, 1, 2, 12]]
    whole, cut = (infer_batch(shared, texts, "all", Settings(block=b)) for b in (1 << 21, 30))
    assert np.abs(whole - cut).max() <= 2 * TOLERANCE


def test_biases_of_positions_follow_their_columns():
    """ALiBi, whose numbers belong to columns that a block may lack."""
    rng = generator(7)
    q, k, v = (rng.normal(size=(2, 9, 4)) for _ in range(3))
    slopes = Slopes(np.array([0.5, 0.25]), 1.0)
    spans = spans_of(Batch((9,)), causal=True, slopes=slopes, window=4)
    ranges = Ranges({}, {"here": AttentionRange(13, 8, 0)})

    async def program(lane, q, k, v):
        return await Secure(lane, ranges).attention(q, k, v, "here", spans)

    got = floats(program, share(q), share(k), share(v), settings=Settings(block=16))
    scores = q @ k.transpose(0, 2, 1) + slopes.bias(9)
    scores = np.where(spans[0].mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (weights / weights.sum(-1, keepdims=True)) @ v
    assert np.abs(got - expected.transpose(1, 0, 2).reshape(9, 8)).max() < 2e-3


def test_views_of_attention_in_blocks_are_uniform():
    spans = spans_of(Batch((4,)), causal=True)
    ranges = Ranges({}, {"here": AttentionRange(13, 8, 0)})

    async def program(lane, q, k, v):
        return await Secure(lane, ranges).attention(q, k, v, "here", spans)

    def once(variant):
        # Eight heads: no message of theirs ends within a byte.
        x = np.resize(column(variant, 0.0, -9.5), (8, 4, 1))
        inputs = [share(x) for _ in range(3)]

        def party(role):
            return lambda lane: program(lane, *(own(value, role) for value in inputs))

        return run_parties({role: party(role) for role in COMPUTING}, Settings(block=48))

    check_case(once)
