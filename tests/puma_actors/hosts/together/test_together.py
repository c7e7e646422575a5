"""Several clients' requests on one model step together: answers, members, ends."""

from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from conversation import generated
from hosts import Hosts, hosts, quiet
from reference import leaves_nothing, save_model, save_tokenizer
from waiting import HANG, in_time, until

from bench.runtime.together import measure
from protocols.base import prf
from protocols.base.lane import Lane, Settings
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.together import conductor, joint
from puma_actors.hosts.together.conductor import Conductor
from puma_actors.hosts.together.group import Group
from puma_actors.hosts.together.joint import Joint
from puma_actors.hosts.together.messages import JointMessage
from puma_actors.hosts.together.seats import Place
from puma_actors.roles.party import Party
from puma_actors.session.inference import InferenceLink

PROMPTS = ("I see", "I see the red cat", "red cat")
TOKENS = 4


class Steps:
    """The joint steps that evaluator A announces: the sessions of each, in order.

    Attributes:
        wait_for: requests that must be ready before the first step is taken.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.taken: list[list[str]] = []
        self.wait_for = 1
        self.begun = anyio.Event()
        self._held: list[Place] | None = []
        ready, announce = Conductor.ready, Joint.announce

        def held_ready(this: Conductor, place: Place) -> None:
            if self._held is None:
                return ready(this, place)
            self._held.append(place)
            if len(self._held) >= self.wait_for:
                held, self._held = self._held, None
                for each in held:
                    ready(this, each)
            return None

        async def noted(this: Joint, message: JointMessage) -> None:
            self.taken.append([member.session for member in message.members])
            self.begun.set()
            await announce(this, message)

        patch.setattr(Conductor, "ready", held_ready)
        patch.setattr(Joint, "announce", noted)
        patch.setattr(conductor, "PATIENCE", 1e6)  # until no one is between two steps

    @property
    def sizes(self) -> list[int]:
        return [len(members) for members in self.taken]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.fixture(scope="module")
def answers(model: Path) -> list[list[int]]:
    """What each prompt is answered by a cluster of its own."""

    async def run() -> list[list[int]]:
        async with LocalCluster.from_pretrained(model, settings=Settings()) as cluster:
            return [await generated(cluster, each, max_new_tokens=TOKENS) for each in PROMPTS]

    found = anyio.run(run)
    assert {len(ids) for ids in found} == {TOKENS}
    return found


async def session(cluster: Hosts, model: str = "tiny") -> RemoteCluster:
    return await RemoteCluster.open(cluster.client, model, settings=Settings())


async def ask(cluster: Hosts, prompt: str, found: dict[Any, Any], model: str = "tiny") -> None:
    async with await session(cluster, model) as remote:
        found[prompt] = await generated(remote, prompt, max_new_tokens=TOKENS)
        found[prompt, "usage"] = remote.usage


async def test_three_at_once(
    folder: Path, certificates: Path, model: Path, answers: list[list[int]], steps: Steps
) -> None:
    """Each gets its own answer; and the costs that it is told do not depend on the others."""
    found: dict[Any, Any] = {}
    steps.wait_for = len(PROMPTS)
    async with leaves_nothing(), hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with anyio.create_task_group() as group:
            for prompt in PROMPTS:
                group.start_soon(ask, cluster, prompt, found)
        assert [found[prompt] for prompt in PROMPTS] == answers
        assert steps.sizes == [3] * (TOKENS - 1)
        await quiet(cluster)
        await until(lambda: not any(s.joints.running for s in cluster.servers.values()))
        together = {prompt: found[prompt, "usage"].steps for prompt in PROMPTS}
        await ask(cluster, PROMPTS[0], found)
        assert steps.sizes[TOKENS - 1 :] == [1] * (TOKENS - 1)
        assert found[PROMPTS[0], "usage"].steps == together[PROMPTS[0]]


@pytest.mark.parametrize("most", [1, 2])
async def test_no_step_is_larger_than_allowed(
    folder: Path,
    certificates: Path,
    model: Path,
    answers: list[list[int]],
    steps: Steps,
    most: int,
) -> None:
    found: dict[Any, Any] = {}
    steps.wait_for = len(PROMPTS)
    extra = f"[limits]\nmax_batch = {most}\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        async with anyio.create_task_group() as group:
            for prompt in PROMPTS:
                group.start_soon(ask, cluster, prompt, found)
    assert [found[prompt] for prompt in PROMPTS] == answers
    assert max(steps.sizes, default=0) == (2 if most == 2 else 0)
    assert sum(steps.sizes) == (3 * (TOKENS - 1) if most == 2 else 0)


async def test_parties_that_differ_refuse_by_name(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.kill(Role.EVALUATOR_B)
        await cluster.start(Role.EVALUATOR_B, "[limits]\nmax_batch = 3\n")
        await cluster.linked()
        with in_time(), pytest.raises(PumaError, match=r"limits\.max_batch = [38] .*[38]: set"):
            async with await session(cluster) as remote:
                await remote.forward([1, 3, 7])


async def test_one_who_comes_later_joins_and_one_who_is_done_leaves(
    folder: Path, certificates: Path, model: Path, answers: list[list[int]], steps: Steps
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        found: dict[Any, Any] = {}
        prompted = anyio.Event()

        async def follow() -> None:
            async with await session(cluster) as second:
                async for _ in second.generate(PROMPTS[1], max_new_tokens=TOKENS):
                    prompted.set()
                found[1] = second.usage.token_ids

        async with anyio.create_task_group() as group, await session(cluster) as first:
            async for _ in first.generate(PROMPTS[0], max_new_tokens=TOKENS):
                if len(first.usage.token_ids) == 2:
                    group.start_soon(follow)
                    await prompted.wait()
            found[0] = first.usage.token_ids
    assert [found[0], found[1]] == answers[:2]
    assert steps.sizes == [1, 2, 2, 1]


@pytest.fixture
def two_begun(steps: Steps) -> Iterator[Steps]:
    steps.wait_for = 2
    yield steps


async def test_a_client_that_is_gone_leaves_the_others_in_peace(
    folder: Path, certificates: Path, model: Path, answers: list[list[int]], two_begun: Steps
) -> None:
    """Its connections are cut while a joint step with both runs."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        found: dict[Any, Any] = {}
        gone = await session(cluster)

        async def go() -> None:
            with pytest.raises(PumaError):
                async with gone:
                    await generated(gone, PROMPTS[1], max_new_tokens=TOKENS)

        async with anyio.create_task_group() as group:
            group.start_soon(go)
            group.start_soon(ask, cluster, PROMPTS[0], found)
            with in_time():
                await two_begun.begun.wait()
            for port in gone.client.scheduler.ports.values():
                port.channel.abort()  # type: ignore[attr-defined]
        assert found[PROMPTS[0]] == answers[0]
        assert two_begun.sizes[0] == 2
        await quiet(cluster)


@pytest.mark.parametrize("at", COMPUTING)
async def test_a_member_that_one_party_has_lost_is_replaced_by_zeros(
    folder: Path,
    certificates: Path,
    model: Path,
    answers: list[list[int]],
    two_begun: Steps,
    monkeypatch: pytest.MonkeyPatch,
    at: Role,
) -> None:
    """That party ends the member's session just before it takes part in the joint step."""
    take = Joint._take
    lost: list[str] = []

    async def losing(this: Joint, told: Any) -> None:
        message: JointMessage = told.message
        if this.role is at and len(message.members) == 2 and not lost:
            lost.append(message.members[1].session)
            seat = this._seat_of(bytes.fromhex(lost[0]))
            assert seat is not None
            seat.end()
        await take(this, told)

    monkeypatch.setattr(Joint, "_take", losing)
    monkeypatch.setattr(conductor, "PATIENCE", 0.0)  # the lost one stays between two steps
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        good, both = {}, [await session(cluster) for _ in range(2)]

        async def run(remote: RemoteCluster, prompt: str, scope: anyio.CancelScope) -> None:
            with scope:
                async with remote:
                    good[remote.session] = (
                        await generated(remote, prompt, max_new_tokens=TOKENS),
                        answers[PROMPTS.index(prompt)],
                    )

        scopes = {remote.session: anyio.CancelScope() for remote in both}
        async with anyio.create_task_group() as group:
            for remote, prompt in zip(both, PROMPTS, strict=False):
                group.start_soon(run, remote, prompt, scopes[remote.session])
            await until(lambda: lost and good)
            scopes[lost[0]].cancel()
        (session_, (ids, wanted)) = next(iter(good.items()))
        assert session_ != lost[0]
        assert ids == wanted
        await quiet(cluster)


@pytest.mark.parametrize("dead", COMPUTING)
async def test_a_party_that_dies_in_a_joint_step_ends_all_clearly(
    folder: Path, certificates: Path, model: Path, two_begun: Steps, dead: Role
) -> None:
    async with leaves_nothing(), hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        errors: list[str] = []

        async def fail(prompt: str) -> None:
            with in_time(), pytest.raises(PumaError) as caught:
                await ask(cluster, prompt, {})
            errors.append(str(caught.value))

        async with anyio.create_task_group() as group:
            for prompt in PROMPTS[:2]:
                group.start_soon(fail, prompt)
            with in_time():
                await two_begun.begun.wait()
            await cluster.kill(dead)
        assert all(str(dead) in error for error in errors)
        others = [cluster.servers[role] for role in COMPUTING if role is not dead]
        await until(lambda: not any(s.sessions or s.joints.running for s in others))


async def test_the_benchmark_of_clients_at_once(
    folder: Path, certificates: Path, model: Path, two_begun: Steps
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model, "model")
        found = await measure(cluster.client, clients=2, tokens=2)
    assert found.tokens == 4
    assert found.seconds > 0
    assert two_begun.sizes == [2, 2]


async def test_models_do_not_mix(
    folder: Path,
    certificates: Path,
    model: Path,
    answers: list[list[int]],
    steps: Steps,
    tmp_path: Path,
) -> None:
    other = save_tokenizer(save_model(tmp_path / "other", seed=4))
    async with LocalCluster.from_pretrained(other, settings=Settings()) as local:
        wanted = await generated(local, PROMPTS[1], max_new_tokens=TOKENS)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.upload(other, "other")
        found: dict[Any, Any] = {}
        async with anyio.create_task_group() as group:
            group.start_soon(ask, cluster, PROMPTS[0], found)
            group.start_soon(ask, cluster, PROMPTS[1], found, "other")
        assert found[PROMPTS[0]] == answers[0]
        assert found[PROMPTS[1]] == wanted
        assert set(steps.sizes) == {1}


@pytest.mark.parametrize("guesses", ["right", "wrong", "wrong too late"])
async def test_no_two_sessions_share_a_stream(
    folder: Path,
    certificates: Path,
    model: Path,
    answers: list[list[int]],
    two_begun: Steps,
    monkeypatch: pytest.MonkeyPatch,
    guesses: str,
) -> None:
    """Every stream that two parties open has a key of its own: no mask is drawn twice, not either
    when the dealer has dealt for a step that is then not taken, in part or all.
    """
    keys: list[bytes] = []
    derive, withdraw, together = prf.derive, Joint.withdraw, joint.evaluate_together
    dealt: set[int] = set()
    dropped: list[int] = []

    def noted(key: bytes, label: bytes, path: tuple[int, ...]) -> bytes:
        keys.append(derive(key, label, path))
        return keys[-1]

    async def dealing(lane: Lane, *rest: Any) -> Any:
        results = await together(lane, *rest)
        if lane.is_dealer:
            assert isinstance(lane.link, InferenceLink)
            dealt.add(lane.link.number)
        return results

    async def late(this: Joint, number: int) -> None:
        dropped.append(number)
        if guesses == "wrong too late":
            await until(lambda: number in dealt)
        await withdraw(this, number)

    monkeypatch.setattr(prf, "derive", noted)
    monkeypatch.setattr(joint, "evaluate_together", dealing)
    monkeypatch.setattr(Joint, "withdraw", late)
    if guesses != "right":
        monkeypatch.setattr(Group, "_foretold", lambda *_: False)
    found: dict[Any, Any] = {}
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with anyio.create_task_group() as group:
            for prompt in PROMPTS[:2]:
                group.start_soon(ask, cluster, prompt, found)
        await quiet(cluster)
    assert [found[prompt] for prompt in PROMPTS[:2]] == answers[:2]
    assert two_begun.sizes == [2] * (TOKENS - 1)
    assert guesses == "right" or len(dropped) >= TOKENS - 1
    opened = Counter(keys)
    assert len(opened) > 100
    # Two parties open each stream that they share, and one a stream of its own.
    assert max(opened.values()) == 2


@pytest.mark.parametrize("when", ["between two steps", "in a step"])
async def test_closing_a_stream_ends_its_inference_at_every_party_at_once(
    folder: Path,
    certificates: Path,
    model: Path,
    answers: list[list[int]],
    two_begun: Steps,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Though the joint step that it is in, or was to be in, cannot even begin; and the other client
    gets its answer.
    """
    go, ends, announce = anyio.Event(), Party._ended, Joint.announce
    ended: dict[Role, float] = {}
    scope, held = anyio.CancelScope(), anyio.Event()

    async def noted(this: Party, message: Any) -> None:
        await ends(this, message)
        ended.setdefault(this.role, anyio.current_time())

    async def held_back(this: Joint, message: JointMessage) -> None:
        if two_begun.taken:
            held.set()
            await go.wait()
        await announce(this, message)

    monkeypatch.setattr(Party, "_ended", noted)
    monkeypatch.setattr(Joint, "announce", held_back)
    found: dict[Any, Any] = {}
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await session(cluster) as first, anyio.create_task_group() as group:
            group.start_soon(ask, cluster, PROMPTS[0], found)

            async def close() -> None:
                await held.wait()
                scope.cancel()

            if when == "in a step":
                group.start_soon(close)
            with scope:
                async with aclosing(first.generate(PROMPTS[1], max_new_tokens=TOKENS)) as stream:
                    async for _ in stream:
                        if when != "in a step" and len(first.usage.token_ids) == 2:
                            break
            closed = anyio.current_time()
            await until(lambda: len(ended) == len(COMPUTING))
            assert max(ended.values()) - closed < HANG / 60  # a second, where nothing else runs
            with in_time():
                await held.wait()  # the other one's step
            assert PROMPTS[0] not in found
            go.set()
        assert found[PROMPTS[0]] == answers[0]
        await quiet(cluster)
    assert two_begun.sizes[:2] == [2, 2]
    assert len(two_begun.sizes) == TOKENS - 1
