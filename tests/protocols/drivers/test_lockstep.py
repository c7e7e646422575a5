"""The lockstep driver and the rules of a lane: order, deadlock, failures, malformed messages."""

import numpy as np
import pytest
from helpers import A, B, D, run, share
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.base.fields import Field, fields_bytes, split
from protocols.base.shares import COMPUTING, Role
from protocols.drivers.lockstep import pair_secrets, run_parties
from protocols.drivers.trace import run_now
from protocols.errors import LocalProtocolError, RemoteProtocolError
from protocols.kernels.packing import pack

ONE = [Field((1,))]
WORD = np.array([7], dtype=np.uint64)


async def nothing(lane):
    return None


def only(**programs):
    """Programs of some computing parties; the others return at once."""
    roles = {"a": A, "b": B, "d": D}
    return {**dict.fromkeys(COMPUTING, nothing), **{roles[k]: p for k, p in programs.items()}}


def test_results_views_and_cost():
    async def sender(lane):
        await lane.send_words(B, ONE, [WORD])
        return "sent"

    async def receiver(lane):
        return int((await lane.receive_words(A, ONE))[0][0])

    outcome = run_parties(only(a=sender, b=receiver))
    assert outcome.results == {A: "sent", B: 7, D: None}
    assert outcome.views == {B: [WORD.tobytes()]}
    assert (outcome.cost.rounds, outcome.cost.online, outcome.cost.offline) == (0, 8, 0)


def test_a_deadlock_names_who_waits():
    async def waits(lane):
        await lane.receive_words(B, ONE)

    with pytest.raises(LocalProtocolError, match=r"every party waits: .*EVALUATOR_B"):
        run_parties(only(a=waits))


def test_a_message_nobody_reads():
    async def sender(lane):
        await lane.send_words(B, ONE, [WORD])

    with pytest.raises(LocalProtocolError, match="never read"):
        run_parties(only(a=sender))


def test_one_tag_is_sent_once():
    async def sender(lane):
        for _ in range(2):
            await lane.link.send(B, (1, 1), [b"x"], online=True)

    with pytest.raises(LocalProtocolError, match=r"sent \(1, 1\) to evaluator-b twice"):
        run_parties(only(a=sender))


def test_a_failing_party_ends_the_run_and_closes_the_others():
    closed = []

    async def waits(lane):
        try:
            await lane.receive_words(B, ONE)
        finally:
            closed.append(lane.role)

    async def fails(lane):
        raise ValueError("broken")

    async def late(lane):
        closed.append("late")

    async def defers(lane):
        await lane.link.defer(late(lane))
        await lane.receive_words(B, ONE)

    with pytest.raises(ValueError, match="broken"):
        run_parties({A: waits, D: defers, B: fails})
    assert closed == [A]


def test_a_failing_lane_closes_its_siblings():
    closed = []

    async def waits(lane):
        try:
            await lane.receive_words(lane.peer, ONE)
        finally:
            closed.append(lane.role)

    async def fails(lane):
        raise ValueError("broken")

    async def program(lane):
        await lane.parallel([waits, waits, fails])

    with pytest.raises(ValueError, match="broken"):
        run_parties(only(a=program))
    assert closed == [A, A]


def test_two_tasks_may_not_wait_on_one_lane():
    async def program(lane):
        await lane.link.gather([lane.receive_words(B, ONE), lane.receive_words(B, ONE)])

    with pytest.raises(LocalProtocolError, match="two tasks wait on one lane: fork it"):
        run_parties(only(a=program))


def test_deferred_work_runs_beside_the_program():
    """The dealer's program ends first; what it deferred still waits for A and answers."""

    async def later(lane):
        (got,) = await lane.receive_words(A, ONE)
        await lane.send_words(A, ONE, [got + np.uint64(1)])

    async def dealer(lane):
        await lane.link.defer(later(lane))

    async def evaluator(lane):
        await lane.send_words(D, ONE, [WORD])
        return int((await lane.receive_words(D, ONE))[0][0])

    assert run_parties(only(d=dealer, a=evaluator)).results[A] == 8


def test_lanes_do_not_fall_out_of_step():
    """The parties run the strands of a fork in different orders, and still pair their messages."""

    async def swap(lane, value):
        (theirs,) = await lane.swap(ONE, [np.array([value], dtype=np.uint64)])
        return int(theirs[0])

    def program(order):
        async def party(lane):
            strands = lane.fork(3)
            return await lane.link.gather([swap(strands[index], index) for index in order])

        return party

    outcome = run_parties(only(a=program([0, 1, 2]), b=program([2, 0, 1])))
    assert outcome.results[A] == [0, 1, 2]
    assert outcome.results[B] == [2, 0, 1]


def test_rounds_are_the_longest_chain():
    async def swaps(lane, count):
        for _ in range(count):
            await lane.swap(ONE, [WORD])

    async def program(lane):
        if lane.is_dealer:
            return
        await swaps(lane, 1)
        await lane.parallel([lambda s, n=n: swaps(s, n) for n in (2, 5, 1)])
        await swaps(lane, 1)

    outcome = run_parties(dict.fromkeys(COMPUTING, program))
    assert outcome.cost.rounds == 7
    assert outcome.cost.online == 2 * 8 * (1 + 8 + 1)


# -- messages --------------------------------------------------------------------------------------

fields = st.lists(
    st.builds(
        Field, st.lists(st.integers(0, 4), max_size=2).map(tuple), st.integers(1, 64), st.booleans()
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(fields, st.integers(0, 1000))
def test_split_undoes_packing(parts, seed):
    rng = np.random.default_rng(seed)
    values = [rng.integers(0, 1 << min(p.width, 63), p.shape, dtype=np.uint64) for p in parts]
    packed = zip(values, parts, strict=True)
    data = b"".join(bytes(pack(np.atleast_1d(v).reshape(-1), p.width)) for v, p in packed)
    assert len(data) == fields_bytes(parts)
    for got, value in zip(split(data, parts), values, strict=True):
        np.testing.assert_array_equal(got, value)
    for wrong in (data + b"x", data[:-1]):
        if len(wrong) != len(data):
            with pytest.raises(RemoteProtocolError, match=f"expected {len(data)}"):
                split(wrong, parts)


def test_a_message_of_the_wrong_size_is_the_other_sides_fault():
    async def short(lane):
        await lane.send_bytes(B, np.zeros(3, dtype=np.uint8), online=True)

    async def words(lane):
        await lane.receive_words(A, ONE)

    async def raw(lane):
        await lane.receive_bytes(A, 4)

    for receiver in (words, raw):
        with pytest.raises(RemoteProtocolError, match=r"3 bytes, expected \d"):
            run_parties(only(a=short, b=receiver))


def test_the_dealer_broadcasts_what_it_promised():
    async def program(lane):
        await lane.broadcast(4, np.zeros(3, dtype=np.uint8))

    with pytest.raises(LocalProtocolError, match="exactly 4 bytes"):
        run_parties(only(d=program))


def test_the_dealers_traffic_alternates():
    async def program(lane):
        for _ in range(6):
            await lane.share([Field((8,))], [np.zeros(8, dtype=np.uint64)])

    outcome = run(program)
    assert {role: len(view) for role, view in outcome.views.items()} == {A: 3, B: 3}


def test_pair_secrets_are_shared_by_two():
    secrets = pair_secrets([*COMPUTING, Role.CLIENT])
    for one, known in secrets.items():
        assert set(known) == set(secrets) - {one}
        for two, secret in known.items():
            assert secrets[two][one] == secret
    assert len({s for known in secrets.values() for s in known.values()}) == 6


def test_run_now_refuses_to_wait():
    class Never:
        def __await__(self):
            yield

    async def waits():
        await Never()

    with pytest.raises(LocalProtocolError, match="no party sends"):
        run_now(waits())


def test_every_party_forks_to_the_same_paths():
    async def program(lane, x):
        first = [strand.path for strand in lane.fork(2)]
        inner = [strand.path for strand in lane.fork(1)[0].fork(2)]
        return first + inner

    results = run(program, share([1.0])).results
    assert results[A] == results[B] == results[D]
    assert len(set(results[A])) == 4


def test_lanes_are_used_again_and_never_twice_at_a_time():
    """A fork inside the task that stays on the lane takes other lanes than those that are busy;
    later forks take the same ones again, and no two draws are alike."""
    seen: dict[object, list[tuple[int, ...]]] = {}

    async def leaf(lane):
        seen.setdefault(lane.role, []).append(lane.path)
        return lane.draw(lane.peer, (2,)).tolist()

    async def nested(lane):
        inner = await lane.parallel([leaf] * 3)
        return [word for pair in inner for word in pair]

    async def program(lane):
        if lane.is_dealer:
            return []
        drawn = []
        for _ in range(3):
            for part in await lane.parallel([nested, leaf, nested]):
                drawn += part
        return drawn

    results = run_parties(dict.fromkeys(COMPUTING, program)).results
    assert results[A] == results[B]
    assert len(set(results[A])) == len(results[A])
    assert sorted(seen[A]) == sorted(seen[B])
    one = seen[A][: len(seen[A]) // 3]
    assert len(set(one)) == len(one)
    assert set(seen[A]) == set(one)
