"""The declared costs of norms, attention and whole models equal their traffic."""

from dataclasses import replace

import numpy as np
import pytest
from counting import ALL_SETTINGS, same, tensor
from secure_models import TinyModel, batches_of, infer, steps, tiny_config, tiny_model

from protocols.arithmetic import (
    map_public,
)
from protocols.base.cost import Cost
from protocols.base.ring import packed_bytes
from protocols.drivers.trace import trace
from protocols.functions.attention import AttentionRange, attend, softmax_numerators
from protocols.functions.normalize import Norm, norm_range, normalize


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize("largest", [10.0, 1e5])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("factor", [None, 1.0, 1000.0])
@pytest.mark.parametrize("eps", [1e-5, 1e-12])
def test_norm(settings, largest, center, factor, eps):
    """With and without centring; no gain, one before the inverse root, one after it."""
    norm = Norm(6, eps, center)
    bounds = norm_range(norm, largest, factor or 1.0)

    async def program(lane, x, *rest):
        gain, shift = rest if rest else (None, None)
        frac = 22 if rest else 18
        return await normalize(lane, x, norm, bounds, gain=gain, shift=shift, frac=frac)

    rest = [] if factor is None else [tensor((6,)), tensor((6,), frac=22)]
    cost = same(program, tensor((3, 6), 64, 22), *rest, settings=settings)
    plain = same(program, tensor((3, 6), 64, 22), settings=settings)
    late = factor is not None and not bounds.early
    lifted = settings.tree != "rounds"
    # The sum of squares and its inverse root take two rounds, with a lift three. Beside them a
    # constant row needs two, other centred entries a lift (with the other trees only if they are
    # not those that are squared), and an early gain one, with its lift
    # two.
    early = factor is not None and bounds.early
    together = lifted and bounds.drop == 0
    beside = (2 if norm.steady else center and not together) + (1 + lifted) * early
    longer = max(0, beside - 2 - lifted)
    assert cost.rounds == plain.rounds + 2 * late + longer
    narrow = next(width for width in range(8, 65) if bounds.fit(norm, width))
    thin = same(program, tensor((3, 6), narrow, 22), settings=settings)
    if settings.tree == "rounds":
        assert plain.rounds == thin.rounds == 4


def test_a_gain_is_late_only_where_its_product_would_not_fit():
    assert norm_range(Norm(6, 1e-5), 10.0, 1000.0).early
    assert not norm_range(Norm(6, 1e-5), 1e5, 1000.0).early


@pytest.mark.parametrize(("shape", "shift"), [((3, 4), 0), ((5,), 18), ((2, 3, 2), 30)])
def test_map_public(shape, shift):
    async def program(lane, x):
        def function(words):
            return np.stack([words + words, words << np.uint64(3)])

        return await map_public(lane, x, function, shift=shift, frac=4)

    count = 2 * int(np.prod(shape))
    sent = 2 * packed_bytes(count, 64 - shift)
    assert same(program, tensor(shape)) == Cost(1, sent, 8 * count)


@pytest.mark.parametrize("settings", ALL_SETTINGS)
@pytest.mark.parametrize(("heads", "rows", "length"), [(1, 1, 1), (2, 3, 3), (3, 1, 18)])
@pytest.mark.parametrize("score_bits", [4, 13, 23])
def test_attention(settings, heads, rows, length, score_bits):
    mask = np.tri(rows, length, length - rows, dtype=np.bool_)

    async def numerators(lane, scores):
        return await softmax_numerators(lane, scores, mask, score_bits)

    async def whole(lane, scores, values):
        return await attend(lane, scores, values, mask, AttentionRange(score_bits, 6, 12))

    scores = tensor((heads, rows, length))
    same(numerators, scores, settings=settings)
    same(whole, scores, tensor((heads, length, 4)), settings=settings)


# -- a whole model ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_model(tiny_config())


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("reveals", ["logits", "argmax"])
@pytest.mark.parametrize("settings", ALL_SETTINGS)
def test_prefill_and_decode_of_a_model(model, settings, reveals, lanes):
    settings = replace(settings, lanes=lanes, reveal=reveals)
    chunks = [[1, 2, 3], [4], [5]]
    counted = infer(model, chunks, settings, rows="last").outcome.cost
    batches = batches_of(chunks, "last")
    cost, by_label = trace(lambda lane: steps(lane, model, batches), settings)
    assert cost == counted
    assert sum(part.online for part in by_label.values()) == cost.online
    assert sum(part.offline for part in by_label.values()) == cost.offline
