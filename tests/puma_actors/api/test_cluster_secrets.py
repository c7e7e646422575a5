"""Who is sent what, and who holds what: secrets in the right hands."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from conversation import IDS, PROMPT, generated

from models.programs.families import load_parameters, parameters_of
from models.programs.program import Drafted
from models.tokens.sampling import Proposal
from protocols.base import prf
from protocols.base.ring import FRACTION_BITS, RESIDUAL_BITS, WEIGHT_BITS
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from puma_actors.api import local
from puma_actors.api.local import LocalCluster
from puma_actors.roles.messages import InferMessage
from puma_actors.roles.upload import InMemory
from puma_actors.session.session import RoundScheduler

# -- who holds what --------------------------------------------------------------------------------


@pytest.fixture
def sent(monkeypatch):
    """Every message between lanes, as (sender, receiver, online), and every control request."""
    messages: Counter = Counter()
    requests: list = []
    from puma_actors.session import session as rounds

    link_send = rounds.InferenceLink.send
    send_control = RoundScheduler.send_control

    async def send(self, to, tag, data, *, online):
        messages[self.role, to, online] += 1
        await link_send(self, to, tag, data, online=online)

    async def control(self, to, header, buffers=()):
        requests.append((self.role, to, header, [bytes(memoryview(b)) for b in buffers]))
        await send_control(self, to, header, buffers)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    monkeypatch.setattr(RoundScheduler, "send_control", control)
    return messages, requests


async def test_who_sends_what_to_whom(folder, sent):
    messages, requests = sent
    async with LocalCluster.from_pretrained(folder) as cluster:
        words = {
            name: cluster.checkpoint.tensor(name).tobytes() for name in cluster.checkpoint.names()
        }
        await cluster.forward(IDS)
        await generated(cluster, max_new_tokens=3)
    # The dealer hears the evaluators in the embedding alone: no more messages than there are
    # lookups, however many layers the model has.
    steps = 4
    for evaluator in EVALUATORS:
        assert messages[evaluator, Role.DEALER, True] <= 2 * steps
        assert messages[evaluator, evaluator, True] == 0
        assert messages[evaluator, Role.CLIENT, True] == steps
        assert steps <= messages[Role.CLIENT, evaluator, True] <= 2 * steps
    assert steps <= messages[Role.CLIENT, Role.DEALER, True] <= 2 * steps
    assert not any(Role.OWNER in pair[:2] for pair in messages)
    assert messages[Role.EVALUATOR_A, Role.EVALUATOR_B, True] > 20 * steps

    # Weights: seeds to those who may know them, masked words to the evaluators, the client nothing.
    uploads = [entry for entry in requests if entry[0] is Role.OWNER]
    seeds = [(to, header["which"]) for _, to, header, _ in uploads if header["do"] == "seed"]
    assert sorted(seeds) == sorted(
        [
            (Role.DEALER, 1),
            (Role.DEALER, 2),
            (Role.EVALUATOR_A, 1),
            (Role.EVALUATOR_B, 2),
        ]
    )
    for _, to, header, buffers in uploads:
        if header["do"] == "tensor":
            assert to in EVALUATORS
        elif header["do"] != "seed":
            assert buffers == []
        assert not any(word in buffer for buffer in buffers for word in words.values())
    from_client = [header for role, _, header, buffers in requests if role is Role.CLIENT]
    for header in from_client:
        assert header["do"] in ("infer", "end", "close")
        assert not {"ids", "prompt_ids", "text"} & header.keys()


async def test_who_holds_what(folder, monkeypatch):
    """The dealer holds two masks or their difference, an evaluator m and one mask, or what it
    multiplies by, the client nothing. All three together hold the model. (In one process nothing is
    held twice by default: test_common.)
    """
    monkeypatch.setattr(local, "InCommon", lambda role, common: InMemory(role))
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        weights = dict(load_parameters(cluster.checkpoint))
        fractions = {"table": RESIDUAL_BITS, "weight": WEIGHT_BITS, "gain": FRACTION_BITS}
        held = {party.role: party._parameters for party in cluster._parties}
        for name, parameter in parameters_of(cluster.plan.config).items():
            handles = [held[role][name] for role in COMPUTING]
            frac = fractions[parameter.kind]
            dealer, left, right = map(arrays, handles)
            if parameter.kind != "gain":  # m - 2 lam1, m - 2 lam2 and lam1 - lam2
                apart, one, two = (factor_words(handle.factor) for handle in handles)
                np.testing.assert_array_equal(two - one, apart << np.uint64(1))
                values = (one + two).view(np.int64) / 2.0 ** (frac + 1)
                np.testing.assert_allclose(values, weights[name], atol=2.0**-frac)
                masks = [apart, one, two]
            if parameter.kind == "weight":
                assert len(dealer) == len(left) == len(right) == 1
            else:  # of a table modulo 2^32
                assert len(dealer) == len(left) == len(right) == 2
                masks = [left[-2], left[-1], right[-1]]
                np.testing.assert_array_equal(left[-2], right[-2])
                np.testing.assert_array_equal(dealer[-2], left[-1])
                np.testing.assert_array_equal(dealer[-1], right[-1])
                assert not np.array_equal(left[-1], right[-1])
                words = left[-2] - left[-1] - right[-1]
                values = words.view(f"i{words.itemsize}") / 2.0**frac
                np.testing.assert_allclose(values, weights[name], atol=2.0**-frac)
            for mask in masks:  # a bit of a uniform word is set half of the time
                bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8))
                assert abs(bits.mean() - 0.5) < 4 / bits.size**0.5
        held_by_client = vars(cluster.client)
        assert not any(isinstance(value, np.ndarray) for value in held_by_client.values())
        assert cluster.client._inferences == {}


def factor_words(factor):
    if isinstance(factor, np.ndarray):
        return factor
    words = np.empty(factor.shape, dtype=np.uint64)
    factor.fill(0, words.reshape(-1))
    return words


def arrays(handle) -> list[np.ndarray]:
    """What a handle holds, in order."""
    values = [getattr(handle, field.name) for field in fields(handle)]
    flat = [part for value in values for part in (value if type(value) is tuple else (value,))]
    return [value for value in flat if isinstance(value, np.ndarray)]


async def test_equal_requests_travel_under_different_masks(folder, monkeypatch):
    """What evaluators open, and what the client sends, differs between two equal requests."""
    from puma_actors.session import session as rounds

    seen: dict[int, dict] = {}
    link_send = rounds.InferenceLink.send

    async def send(self, to, tag, data, *, online):
        key = (self.role, to, tag)
        whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        assert key not in seen.setdefault(self.number, {})
        seen[self.number][key] = whole
        await link_send(self, to, tag, data, online=online)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        await cluster.forward(IDS)
    first, second = seen.values()
    assert first.keys() == second.keys()
    long = [key for key in first if len(first[key]) >= 16]
    assert len(long) > 100
    for key in long:
        assert len(first[key]) == len(second[key])
        assert first[key] != second[key], key


class Wrong:
    """Proposes the same three tokens at every position, none of which is right."""

    name = "wrong"

    def begin(self, sampling, prompt, ends):
        return self

    def propose(self, ids, most):
        return [Proposal(0)] * min(most, 3)


@pytest.mark.parametrize("broken", [False, True], ids=["as it is", "keys without numbers"])
async def test_what_a_draft_gave_up_is_masked_anew(folder, monkeypatch, broken):
    """Two requests of equal drafts, and within them the same tokens at the same positions again:
    no message comes twice, and half of the bits between the evaluators are set. Keys that depend on
    neither the step's number nor what was announced are seen.
    """
    from puma_actors.session import session as rounds

    seen: dict[tuple, bytes] = {}
    link_send, derive = rounds.InferenceLink.send, prf.derive

    async def send(self, to, tag, data, *, online):
        whole = b"".join(bytes(memoryview(part).cast("B")) for part in data)
        assert (self.number, self.role, to, tag) not in seen
        seen[self.number, self.role, to, tag] = whole
        await link_send(self, to, tag, data, online=online)

    monkeypatch.setattr(rounds.InferenceLink, "send", send)
    if broken:
        monkeypatch.setattr(
            prf, "derive", lambda secret, label, path: derive(secret, label, path[5:])
        )
    async with LocalCluster.from_pretrained(folder) as cluster:
        for _ in range(2):
            await generated(cluster, max_new_tokens=40, draft=Wrong())
            drafts = [draft for draft in cluster.usage.drafts if draft.proposed]
            assert len(drafts) > 1, cluster.usage.drafts
            assert drafts[0] == Drafted(3, 0)
            assert not any(draft.accepted for draft in drafts)
    long = [(to, message) for (_, _, to, _), message in seen.items() if len(message) >= 16]
    assert len(long) > 1000
    again = len(long) - len({*long})  # some are sent to both evaluators
    assert again > 1000 if broken else again == 0
    if not broken:
        between = b"".join(
            message for (_, role, to, _), message in seen.items() if {role, to} == {*EVALUATORS}
        )
        bits = np.unpackbits(np.frombuffer(between, dtype=np.uint8))
        assert abs(bits.mean() - 0.5) < 0.01


async def test_parties_hear_of_a_draft_how_long_it_is_and_no_more(folder, sent):
    _, requests = sent
    async with LocalCluster.from_pretrained(folder) as cluster:
        await generated(cluster, max_new_tokens=12, draft="ngram")
        drafts = cluster.usage.drafts
    told = [h for role, to, h, _ in requests if (role, to) == (Role.CLIENT, Role.DEALER)]
    steps = [header for header in told if header["do"] == "next"]
    assert [step["proposed"] for step in steps] == [draft.proposed for draft in drafts]
    assert [step["accepted"] for step in steps[1:]] == [draft.accepted for draft in drafts[:-1]]
    for step in steps:
        assert step.keys() == {"do", "number", "accepted", "proposed"}


async def test_inference_numbers_are_never_used_twice(folder, sent):
    _, requests = sent
    async with LocalCluster.from_pretrained(folder) as cluster:
        await cluster.forward(IDS)
        await generated(cluster, max_new_tokens=3)
        tokens = cluster.generate(PROMPT, max_new_tokens=9)
        await anext(tokens)
        await tokens.aclose()
        await generated(cluster, max_new_tokens=2)
    used: set[int] = set()
    for _, to, header, _ in requests:
        if header["do"] == "infer" and to is Role.DEALER:
            message = InferMessage(**header)
            numbers = set(range(message.number, message.number + message.steps))
            assert not numbers & used
            used |= numbers
    assert len(used) == 1 + 3 + 9 + 2
