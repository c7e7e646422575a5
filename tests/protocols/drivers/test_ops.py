"""A small LLaMA under MPC against floating point: prefill, decode, heads, lanes, arg-max."""

import numpy as np
import pytest
from helpers import run, share
from secure_models import TinyModel, infer, tiny_config, tiny_model

from models.owner.calibrate import plain_run
from protocols.base.lane import Settings
from protocols.drivers.ops import Heads, Ranges, Rotation, rotate
from protocols.drivers.secure import Secure
from protocols.errors import LocalProtocolError
from protocols.functions.normalize import Norm

IDS = [3, 17, 0, 39, 17, 8]
TOLERANCE = 0.01


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return tiny_model(tiny_config())


def reference(model: TinyModel, ids: list[int]) -> np.ndarray:
    return plain_run(model.config, model.floats, [ids])


@pytest.mark.parametrize(
    ("heads", "key_heads", "tied", "lanes"),
    [(4, 2, True, 1), (4, 4, False, 2), (6, 3, False, 3), (3, 1, True, 2), (4, 2, True, 3)],
)
def test_logits(heads, key_heads, tied, lanes):
    config = tiny_config(heads=heads, key_heads=key_heads, tied=tied)
    model = tiny_model(config, seed=heads + lanes)
    (logits,) = infer(model, [IDS], Settings(lanes=lanes)).chunks
    expected = reference(model, IDS)
    assert logits.shape == (len(IDS), config.vocab_size)
    assert np.ptp(expected) > 1  # the comparison means something
    assert np.abs(logits - expected).max() <= TOLERANCE


@pytest.mark.parametrize("tree", ["rounds", "traffic"])
def test_decode_continues_prefill(model, tree):
    chunks = [IDS[:3], IDS[3:4], IDS[4:]]
    generation = infer(model, chunks, Settings(tree=tree))
    assert [c.shape[0] for c in generation.chunks] == [3, 1, 2]
    logits = np.concatenate(generation.chunks)
    assert np.abs(logits - reference(model, IDS)).max() <= TOLERANCE


def test_the_last_row_alone(model):
    generation = infer(model, [IDS[:4], IDS[4:5], IDS[5:]], rows="last")
    logits = np.concatenate(generation.chunks)
    assert logits.shape == (3, model.config.vocab_size)
    assert np.abs(logits - reference(model, IDS)[3:]).max() <= TOLERANCE


def test_lanes_agree_and_cost_the_same_rounds(model):
    one, two = (infer(model, [IDS], Settings(lanes=lanes)) for lanes in (1, 2))
    assert np.abs(one.chunks[0] - two.chunks[0]).max() <= TOLERANCE
    assert one.outcome.cost.rounds == two.outcome.cost.rounds


def test_puma_set_is_less_exact_but_works(model):
    (tight,) = infer(model, [IDS]).chunks
    (puma,) = infer(model, [IDS], Settings(approximation="puma")).chunks
    expected = reference(model, IDS)
    assert np.abs(tight - expected).max() < np.abs(puma - expected).max() < 1


def test_argmax_reveals_the_token_alone(model):
    settings = Settings(reveal="argmax")
    generation = infer(model, [IDS[:5], IDS[5:]], settings, rows="last")
    expected = reference(model, IDS)[4:]
    top = np.sort(expected, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 2 * TOLERANCE  # else the test would be a coin
    np.testing.assert_array_equal(np.concatenate(generation.chunks), expected.argmax(axis=1))


def test_secure_norm_needs_a_range(model):
    async def program(lane, x):
        return await Secure(lane, Ranges({}, {})).norm(x, "somewhere", Norm(4, 1e-5))

    with pytest.raises(LocalProtocolError, match="somewhere has no range"):
        run(program, share(np.ones((1, 4)), frac=22))


def test_rotation_matches_the_complex_product():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 2, 8))
    angles = rng.normal(size=(5, 4))
    turn = Rotation(np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2)))
    turned = rotate(x, turn.cos, turn.sin)
    product = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)[:, None, :]
    np.testing.assert_allclose(turned[..., :4], product.real)
    np.testing.assert_allclose(turned[..., 4:], product.imag)
    assert Heads(4, 2, 8).columns == 64
