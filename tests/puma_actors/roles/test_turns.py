"""The steps of a request with a draft: what may follow what, and under which keys."""

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import settled

from models.programs.program import Batch, next_batch
from protocols.base.lane import Settings
from protocols.errors import ConfigError, RemoteProtocolError
from puma_actors.roles.messages import NextMessage, infer_message
from puma_actors.roles.turns import Announced, Turns


def request(steps=9, draft=3, prompt=4, number=5):
    return infer_message(number, Batch((prompt,), "last"), steps, Settings(), draft)


def test_a_request_without_a_draft_counts_on():
    turns = Turns(request(draft=0))
    assert (turns.first.number, turns.first.kept) == (5, 0)
    assert turns.first.batch == Batch((4,), "last")
    for step in range(1, 9):
        turn = turns.following()
        assert (turn.number, turn.kept, turn.batch) == (5 + step, 3 + step, Batch((1,), "last"))
        assert turn.bound == turns.first.bound == request(draft=0).binding()
    with pytest.raises(ConfigError, match="has no draft, so its steps are not announced"):
        turns.drafted(0, 0)


def test_what_is_kept():
    turns = Turns(request())
    assert turns.drafted(0, 3).kept == 4
    assert turns.drafted(1, 2).kept == 4 + 1 + 1
    assert turns.drafted(2, 0).kept == 6 + 1 + 2
    assert turns.drafted(0, 1).kept == 9 + 1
    assert turns.drafted(0, 0).kept == 10 + 1
    assert turns.next == 11


@pytest.mark.parametrize(
    ("accepted", "proposed", "reason"),
    [
        (3, 0, "3 accepted of 2 proposed tokens"),
        (-1, 0, "-1 accepted of 2 proposed tokens"),
        (0, 4, "4 proposed tokens, the request allows 3"),
        (0, -1, "-1 proposed tokens, the request allows 3"),
    ],
)
def test_what_is_refused(accepted, proposed, reason):
    """And changes nothing: the right announcement may still follow."""
    turns = Turns(request())
    with pytest.raises(ConfigError, match="1 accepted of 0 proposed tokens"):
        turns.drafted(1, 0)
    turns.drafted(0, 2)
    with pytest.raises(ConfigError, match=reason):
        turns.drafted(accepted, proposed)
    assert turns.drafted(2, 3).kept == 7


def test_no_step_goes_beyond_the_request():
    turns = Turns(request(steps=4, draft=3))  # 7 tokens: 4 of the prompt, 3 more
    turns.drafted(0, 1)
    with pytest.raises(ConfigError, match="a step up to token 8 of a request of 7"):
        turns.drafted(1, 1)
    turns.drafted(0, 1)
    with pytest.raises(ConfigError, match="a step up to token 8 of a request of 7"):
        turns.drafted(1, 0)
    turns.drafted(0, 0)
    with pytest.raises(ConfigError, match="step 9 is announced, the last is 8"):
        turns.drafted(0, 0)


@given(st.data())
def test_any_honest_client_is_followed(data):
    """Parties and client agree on every step, no number repeats, and the last position is never
    passed."""
    steps, draft = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    mine, theirs = (Turns(request(steps, draft)) for _ in range(2))
    made, offered, bounds = 1, 0, {mine.first.bound}
    while made < steps:
        accepted = data.draw(st.integers(0, offered))
        made += accepted
        if made >= steps:
            break
        offered = data.draw(st.integers(0, min(draft, steps - made - 1)))
        turn = mine.drafted(accepted, offered)
        assert theirs.drafted(accepted, offered) == turn
        assert turn.batch == next_batch(offered)
        assert turn.kept == 4 + made - 1
        assert turn.kept + turn.batch.tokens <= 4 + steps - 1
        assert turn.bound not in bounds
        bounds.add(turn.bound)
        made += 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_parties_that_are_told_different_things_share_no_keys(told):
    """From then on: what both are told afterwards is bound to the difference, too."""
    one, other = Turns(request(steps=40)), Turns(request(steps=40))
    one.drafted(0, 3)
    other.drafted(0, 2)
    for proposed in told:
        turns = one.drafted(0, proposed), other.drafted(0, proposed)
        assert turns[0].number == turns[1].number
        assert turns[0].bound != turns[1].bound


async def test_a_party_waits_for_announcements():
    announced, begun = Announced(request()), []

    async def follow() -> None:
        async for turn in announced.steps():
            begun.append(turn)

    async with anyio.create_task_group() as group:
        group.start_soon(follow)
        await settled()
        assert [turn.number for turn in begun] == [5]
        announced.take(NextMessage(number=6, accepted=0, proposed=2))
        await settled()
        announced.take(NextMessage(number=7, accepted=1, proposed=0))
        await settled()
        assert [(turn.number, turn.kept) for turn in begun] == [(5, 0), (6, 4), (7, 6)]
        group.cancel_scope.cancel()


async def test_one_announcement_at_a_time():
    announced = Announced(request())
    announced.take(NextMessage(number=6, accepted=0, proposed=2))
    with pytest.raises(RemoteProtocolError, match="step 7 was announced before step 6 began"):
        announced.take(NextMessage(number=7, accepted=0, proposed=2))
    for number, said in ((5, "step 5 was announced, step 6 comes next"), (7, "step 7 was")):
        with pytest.raises(RemoteProtocolError, match=said):
            Announced(request()).take(NextMessage(number=number, accepted=0, proposed=0))
    with pytest.raises(RemoteProtocolError, match="the client's draft is unusable: 2 accepted"):
        Announced(request()).take(NextMessage(number=6, accepted=2, proposed=0))
    with pytest.raises(RemoteProtocolError, match="unusable: the request has no draft"):
        Announced(request(draft=0)).take(NextMessage(number=6, accepted=0, proposed=0))
