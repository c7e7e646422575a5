"""Steps of several requests as one: each one's logits, the cost of all, and what a party sees."""

import numpy as np
import pytest
from family_variants import VARIANTS
from helpers import share
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from privacy_cases import check_case
from secure_models import TinyModel, family_values, share_model, tiny_config, tiny_model
from tiny_models import DECODERS

from models.owner.calibrate import plain_run
from models.programs.families import forward
from models.programs.inference import ask, evaluate
from models.programs.joint.alone import Alone
from models.programs.joint.parts import evaluate_together, part_of, stand_in
from models.programs.predict import predict
from models.programs.program import Batch, Cache, next_batch
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import run_parties
from protocols.drivers.ops import Ranges, Span
from protocols.drivers.plain import Plain
from protocols.drivers.secure import Secure
from protocols.drivers.together import Part, together
from protocols.drivers.trace import run_now, trace
from protocols.embedding import reveal
from protocols.errors import LocalProtocolError
from protocols.functions.attention import AttentionRange

TOLERANCE = 0.01
TEXTS = [[5, 9, 30, 2, 17], [22, 8], [11, 38, 21, 6, 14, 3, 9], [1]]
CASES = [*((name, {}) for name in DECODERS), *VARIANTS[::3]]


def begun(config, values, ids, cache):
    """A part over floats, which has looked up its input."""
    batch = next_batch() if cache.length else Batch((len(ids),), "last")
    ops = Plain(np.asarray(ids, dtype=np.int64))
    part = Part(ops, lambda member: forward(member, config, values, batch, cache))
    run_now(part.embed())
    return part


def joined(parts):
    return run_now(together(Plain(np.zeros(0, np.int64)), parts, np.concatenate))


@pytest.mark.parametrize(("model_type", "changes"), CASES)
def test_every_decoder(model_type, changes, tmp_path):
    """Prompts, and then steps with caches, give what each would give alone."""
    config, values = family_values(model_type, "causal-lm", tmp_path, **changes)
    together_, alone = ([Cache.empty(config.num_layers) for _ in TEXTS] for _ in range(2))
    for step in ([], [7], [9]):
        texts = [step or text for text in TEXTS]
        found = joined(
            [begun(config, values, *each) for each in zip(texts, together_, strict=True)]
        )
        for row, each in enumerate(zip(texts, alone, strict=True)):
            (wanted,) = joined([begun(config, values, *each)])
            np.testing.assert_allclose(found[row], wanted, rtol=0, atol=1e-9)


def in_lockstep(model: TinyModel, texts, settings=None):
    """The logits of a step of all texts, each after the prefill of all but its last token."""

    async def party(lane):
        held, strands = model.held[lane.role], lane.fork(2 * len(texts) + 1)
        caches = [Cache.empty(model.config.num_layers) for _ in texts]
        for row, text in enumerate(texts):
            if text[:-1]:
                batch = Batch((len(text) - 1,), "last")
                await evaluate(strands[2 * row], model.plan, held, batch, caches[row])
        parts = [
            part_of(strands[2 * row + 1], model.plan, held, next_batch(), cache)
            for row, cache in enumerate(caches)
        ]
        for part in parts:
            await part.embed()
        for row, result in enumerate(await evaluate_together(strands[-1], model.plan, parts)):
            await reveal(strands[2 * row + 1], result)

    async def client(lane):
        strands, asked = lane.fork(2 * len(texts) + 1), []
        for row, text in enumerate(texts):
            if text[:-1]:
                batch = Batch((len(text) - 1,), "last")
                await ask(strands[2 * row], model.config, batch, text[:-1])
            asked.append(ask(strands[2 * row + 1], model.config, next_batch(), text[-1:]))
        return np.concatenate(await lane.link.gather(asked))

    programs = {**dict.fromkeys(COMPUTING, party), Role.CLIENT: client}
    return run_parties(programs, settings, record=False).results[Role.CLIENT]


@pytest.fixture(scope="module", params=["llama", "gpt2", "falcon", "opt", "gemma2"])
def model(request, tmp_path_factory):
    if request.param == "llama":
        return tiny_model(tiny_config())
    folder = tmp_path_factory.mktemp("model")
    return share_model(*family_values(request.param, "causal-lm", folder))


@pytest.mark.parametrize("settings", [Settings(), Settings(tree="traffic", lanes=2, block=64)])
def test_shares_of_several_requests(model, settings):
    found = in_lockstep(model, TEXTS, settings)
    wanted = [plain_run(model.config, model.floats, [text], "last")[0] for text in TEXTS]
    assert np.abs(found - wanted).max() <= 2 * TOLERANCE


SMALL = tiny_model(tiny_config(layers=1))


@examples(max_examples=5)
@given(st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=9), min_size=1, max_size=4))
def test_any_texts(texts):
    model = SMALL
    found = in_lockstep(model, texts)
    wanted = [plain_run(model.config, model.floats, [text], "last")[0] for text in texts]
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("settings", [Settings(), Settings(block=64, tree="traffic", lanes=2)])
def test_the_cost_of_all_is_predicted_exactly(model, settings):
    async def program(lane):
        parts = [stand_in(lane, model.plan, model.held[lane.role], n) for n in (5, 1, 16, 5)]
        await evaluate_together(lane, model.plan, parts)

    counted = run_parties(dict.fromkeys(COMPUTING, program), settings, record=False).cost
    assert counted == trace(program, settings)[0]


@pytest.mark.parametrize("settings", [Settings(), Settings(tree="traffic", lanes=2)])
def test_what_a_step_costs_alone(model, settings):
    """As it is predicted for a request that has no company."""
    alone = Alone(model.plan)
    for step, prediction in enumerate(predict(model.plan, 14, 4, settings)[1:]):
        assert alone.cost(settings, 14 + step) == prediction.cost


def test_all_must_call_the_same():
    async def program(ops, name):
        x = await ops.embed(None, 1, 1)
        return await ops.linear(x, np.ones((1, 1)), name)

    parts = [Part(Plain(np.zeros(1, np.int64)), lambda ops, n=n: program(ops, n)) for n in "ab"]
    for part in parts:
        part.look_up()
        part.begin(np.ones((1, 1)))
    with pytest.raises(LocalProtocolError, match=r"different operations: .*'a'.*'b'"):
        joined(parts)


def test_a_program_begins_with_its_input():
    async def program(ops):
        return await ops.linear(np.ones((1, 1)), np.ones((1, 1)), "first")

    with pytest.raises(LocalProtocolError, match="must begin with the look-up"):
        Part(Plain(np.zeros(0, np.int64)), program).look_up()


async def small(ops, past):
    """A product, then attention to what was there before."""
    x = await ops.scaled(await ops.embed(None, 1, 4), 0.5)
    k = ops.append(past, x.reshape(4, 1, 1))
    length = k.shape[1]
    seen = Span(slice(0, 1), slice(0, length), np.ones((1, length), dtype=np.bool_))
    return await ops.attention(x.reshape(4, 1, 1), k, k, "here", [seen])


def test_views_are_uniform():
    """Rows of two members, with very different inputs and caches."""
    ranges = Ranges({}, {"here": AttentionRange(6, 6, 0)})

    async def party(lane, inputs, pasts):
        ops = Secure(lane, ranges)
        parts = [Part(ops, lambda member, past=past: small(member, past)) for past in pasts]
        for part, x in zip(parts, inputs, strict=True):
            part.look_up()
            part.begin(x)
        return await together(ops, parts)

    def once(variant):
        inputs = [share(np.full((1, 4), value * variant)) for value in (3.0, -2.0)]
        pasts = [share(np.full((4, 1, 1), value * variant)) for value in (-1.0, 2.0)]
        programs = {
            role: lambda lane, role=role: party(
                lane, [each[role] for each in inputs], [each[role] for each in pasts]
            )
            for role in COMPUTING
        }
        return run_parties(programs)

    check_case(once)
