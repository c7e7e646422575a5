"""What a session's requests may take together, and when it is idle."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_samples import CONFIG, PLAN

from models.programs.memory import footprint
from models.programs.plan import Plan
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, RemoteProtocolError
from puma_actors.hosts.residents import joined_bytes
from puma_actors.hosts.serving import RequestLimits, ServingLimits
from puma_actors.roles.messages import InferMessage

TOKENS = 24
WINDOW = 1 << 10


class Memory:
    """What is set aside beyond the sessions' own. `full`: there is no more."""

    def __init__(self) -> None:
        self.used = 0
        self.full = False

    @contextmanager
    def room(self, plan: Plan, extra: int, need: int) -> Iterator[None]:
        assert plan is PLAN
        assert 0 <= extra <= need
        if self.full:
            raise Busy("no memory")
        self.used += extra
        try:
            yield
        finally:
            self.used -= extra


def asked(number: int, length: int = 3, steps: int = 2) -> InferMessage:
    return InferMessage(number=number, lengths=[length], steps=steps)


def take(limits: RequestLimits, request: InferMessage) -> None:
    limits.check(request)
    limits.admit(request, PLAN)


def need(request: InferMessage, role: Role) -> int:
    return footprint(
        CONFIG,
        request.batch(),
        request.steps,
        request.settings(),
        dealer=role.is_dealer,
        window=WINDOW,
    ).total


REQUESTS = st.lists(
    st.tuples(st.booleans(), st.integers(1, 12), st.integers(1, 4), st.booleans()), max_size=12
)


@given(REQUESTS, st.sampled_from(COMPUTING), st.integers(0, 60_000))
def test_requests_together_keep_within_their_limits(
    events: list[tuple[bool, int, int, bool]], role: Role, memory: int
) -> None:
    """Whichever end first; and what does not fit leaves no trace."""
    aside = Memory()
    running: dict[int, InferMessage] = {}
    with RequestLimits(role, ServingLimits(TOKENS, 1.0, memory, aside.room), WINDOW) as limits:
        for number, (begins, length, steps, aside.full) in enumerate(events):
            if not begins:
                if running:
                    ended = [*running][length % len(running)]
                    del running[ended]
                    limits.release(ended)
            else:
                request = asked(number, length, steps)
                tokens = sum(r.lengths[0] + r.steps - 1 for r in [*running.values(), request])
                refusal = RemoteProtocolError if tokens > TOKENS else Busy if aside.full else None
                before = aside.used
                if refusal is None:
                    take(limits, request)
                    running[number] = request
                else:
                    with pytest.raises(refusal):
                        take(limits, request)
                    assert aside.used == before
            assert memory + aside.used >= sum(need(each, role) for each in running.values())
            assert running or aside.used == 0
    assert aside.used == 0


def test_a_joint_step_takes_a_second_copy_of_a_layer() -> None:
    role, aside, request = Role.EVALUATOR_A, Memory(), asked(0, 9, 4)
    told = ServingLimits(TOKENS, 1.0, 0, aside.room, joined_bytes)
    keys = 9 + 3, 2 * CONFIG.num_kv_heads * CONFIG.head_dim, 2 * 8  # tokens, entries, bytes
    with RequestLimits(role, told, WINDOW) as limits:
        take(limits, request)
        assert aside.used == need(request, role) + 3 * prod(keys)


def test_who_counts_no_memory_counts_tokens() -> None:
    with RequestLimits(Role.DEALER, ServingLimits(4), WINDOW) as limits:
        take(limits, asked(0))
        with pytest.raises(RemoteProtocolError, match="more than 4 tokens at once"):
            limits.check(asked(2, 1, 1))
        limits.release(0)
        take(limits, asked(3))
