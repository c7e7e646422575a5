"""Units that three parties prepare, and requests that use them."""

import os
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hosts import Hosts, hosts, quiet
from waiting import until

from models.programs.plan import Plan
from protocols.base import prf
from protocols.base.lane import Settings
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import Busy, ConfigError, PeerFailed, StoreError
from puma_actors.api.remote import PrepareOptions, RemoteCluster, prepare_units
from puma_actors.hosts.prepared.asking import Preparing
from puma_actors.hosts.serving import RequestLimits
from puma_actors.hosts.unanimous import common_stock
from puma_actors.prepare.file import UnitFile
from puma_actors.prepare.unit import Prepared
from puma_actors.roles.messages import InferMessage

IDS = [1, 3, 7]
NEW = 3


async def prepare(cluster: Hosts, count: int = 1, **options: Any) -> Any:
    chosen = PrepareOptions(tokens_in=len(IDS), tokens_out=NEW, count=count)
    return await prepare_units(cluster.client, "tiny", chosen, **options)


async def answer(
    cluster: Hosts,
    prepared: Prepared,
    count: int = NEW,
    name: str = "tiny",
    settings: Settings | None = None,
) -> Any:
    """The tokens of an answer, and its cost."""
    opened = await RemoteCluster.open(cluster.client, name, prepared=prepared, settings=settings)
    async with opened as remote:
        tokens = [
            token.id
            async for token in remote.generate(IDS, max_new_tokens=count, eos_token_id=None)
        ]
        return [each for each in tokens if each is not None], remote.usage, remote


def units_at(cluster: Hosts) -> dict[Role, set[str]]:
    """Names of files of units at each party."""
    return {
        role: {path.name for path in (server.store.folder / ".prepared").glob("*")}
        for role, server in cluster.servers.items()
    }


async def test_a_prepared_answer_is_the_same_and_nothing_is_dealt_for_it(
    folder: Path, certificates: Path, model: Path
) -> None:
    seen: list[Preparing] = []
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        made = await prepare(cluster, 2, report=seen.append)
        assert (seen[0].units, seen[-1].units, seen[-1].done) == (0, 2, 1.0)
        dealt = seen[0].sizes.dealt
        evaluators = [made.nbytes[role] / 2 for role in EVALUATORS]
        assert 0.95 * dealt < sum(evaluators) < 1.2 * dealt + 100_000
        assert max(evaluators) < seen[0].sizes.expected
        assert made.nbytes[Role.DEALER] < 100_000

        plain, usage, _ = await answer(cluster, "never")
        assert (usage.prepared, usage.total.offline > 0) == (0, True)
        tokens, usage, remote = await answer(cluster, "require")
        assert tokens == plain
        assert (usage.prepared, usage.total.offline) == (NEW, 0)
        assert usage.steps == remote.predict(len(IDS), NEW - 1)  # there is another unit

        await answer(cluster, "auto", 2)  # fewer steps than it was made for
        assert not any(units_at(cluster).values())
        tokens, usage, _ = await answer(cluster, "auto")
        assert (tokens, usage.prepared) == (plain, 0)
        with pytest.raises(Busy, match="no prepared unit is left for this request: run `puma"):
            await answer(cluster, "require")
        await quiet(cluster)


async def test_the_logits_are_the_same(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    """Up to roundings, and for a client that prepares by itself."""
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare_units(cluster.client, "tiny", PrepareOptions(tokens_in=3), role=Role.CLIENT)
        opened = await RemoteCluster.open(cluster.client, "tiny", prepared="require")
        async with opened as remote:
            logits = await remote.forward(IDS, rows="last")
            assert (remote.usage.prepared, remote.usage.total.offline) == (1, 0)
            assert np.abs(logits - wanted[-1:]).max() < 0.05
            with pytest.raises(ConfigError, match="no prepared units for several sequences"):
                await remote.forward([IDS, IDS])


async def test_other_settings_and_public_weights(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await cluster.upload(model, "open", public_weights=True)
        for name, settings in (
            ("tiny", Settings("fast", "traffic", 2, "argmax")),
            ("open", Settings()),
        ):
            options = PrepareOptions(tokens_in=len(IDS), tokens_out=NEW, settings=settings)
            await prepare_units(cluster.client, name, options)
            plain, _, _ = await answer(cluster, "never", NEW, name, settings)
            tokens, usage, _ = await answer(cluster, "require", NEW, name, settings)
            assert tokens == plain
            assert (usage.prepared, usage.total.offline) == (NEW, 0)


async def test_no_stream_is_drawn_from_twice(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over two units, their making and their use: each party opens a stream once, except where it
    sends the same words as before, at the embedding.
    """
    opened: list[tuple[str, tuple[int, ...], bytes]] = []

    class Noted(prf.KeyRing):
        def __init__(self, own: str, secrets: Any) -> None:
            super().__init__(own, secrets)
            self.own = own

        def stream(self, peer: str, path: tuple[int, ...]) -> prf.Stream:
            key = prf.derive(self._secrets[peer], b"puma lane", path)
            opened.append((self.own, path, key))
            return super().stream(peer, path)

    monkeypatch.setattr("puma_actors.prepare.links.KeyRing", Noted)
    monkeypatch.setattr("puma_actors.session.session.KeyRing", Noted)
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster, 2)
        made = len(opened)
        for _ in range(2):
            await answer(cluster, "require")
    first, later = opened[:made], opened[made:]
    for part in (first, later):
        keys = [(own, key) for own, _, key in part]
        assert len(set(keys)) == len(keys)
    again = {(own, key) for own, _, key in first} & {(own, key) for own, _, key in later}
    # Lanes of the embedding: the first fork of each step, and at the dealer the lane it is on.
    assert {own for own, _ in again} == set(COMPUTING)
    for own, path, key in opened:
        if (own, key) in again:
            assert path[1:2] == (1,) or (own, len(path)) == (Role.DEALER, 1)
    pairs: dict[bytes, set[str]] = {}
    for own, _, key in opened:
        pairs.setdefault(key, set()).add(own)
    assert max(map(len, pairs.values())) == 2


async def test_a_party_that_refuses_the_request_costs_no_unit(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit = RequestLimits.admit

    def refused(self: RequestLimits, request: InferMessage, plan: Plan) -> None:
        if self._role is Role.EVALUATOR_B:
            raise Busy("evaluator-b has no memory")
        admit(self, request, plan)

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster)
        with monkeypatch.context() as patched:
            patched.setattr(RequestLimits, "admit", refused)
            with pytest.raises(Busy, match="evaluator-b has no memory"):
                await answer(cluster, "require")
        assert (await answer(cluster, "require"))[1].prepared == NEW


async def test_two_clients_race_for_the_last_unit(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster)
        found: list[tuple[list[int], int]] = []

        async def ask() -> None:
            tokens, usage, _ = await answer(cluster, "auto")
            found.append((tokens, usage.prepared))

        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(ask)
        assert sorted(prepared for _, prepared in found) == [0, NEW]
        assert found[0][0] == found[1][0]


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_unit_that_one_party_lost_is_used_by_none(
    folder: Path, certificates: Path, model: Path, role: Role
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster, 2)
        held = cluster.servers[role].shelf
        lost = sorted(units_at(cluster)[role])[0].removesuffix(".unit")
        label = next(each.label for unit, each in held._held.items() if unit == lost)
        held.claim(lost, label.origin, label.shape).close()
        assert (await answer(cluster, "require"))[1].prepared == NEW
        if role is Role.DEALER:  # the others have a part of no use, until units are made again
            await prepare(cluster)
            assert len({frozenset(names) for names in units_at(cluster).values()}) == 1


@pytest.mark.parametrize("role", COMPUTING)
async def test_a_damaged_word_is_an_error_by_name(
    folder: Path, certificates: Path, model: Path, role: Role
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster)
        (path,) = (cluster.servers[role].store.folder / ".prepared").iterdir()
        file = UnitFile(os.open(path, os.O_RDONLY), path.stem)
        place = next(place for place in file.index(0).values() if place.size)
        file.close()
        data = bytearray(path.read_bytes())
        data[place.at] ^= 1
        path.write_bytes(data)
        with pytest.raises(PeerFailed, match=rf"prepared unit {path.stem} is damaged"):
            await answer(cluster, "require")
        assert not any(units_at(cluster).values())
        await quiet(cluster)


async def test_who_leaves_in_the_middle_leaves_whole_units(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        with anyio.CancelScope() as scope:

            def report(found: Preparing) -> None:
                if found.units == 1 and found.steps:
                    scope.cancel()

            await prepare(cluster, 1000, report=report)
        await quiet(cluster)
        whole = units_at(cluster)
        assert all(name.endswith(".unit") for names in whole.values() for name in names)
        assert set.intersection(*whole.values())
        assert all(len(names) < 10 for names in whole.values())
        listed = cluster.servers[Role.DEALER].visits.entry("tiny")
        assert sum(common_stock([listed]).values()) == len(whole[Role.DEALER])
        assert (await answer(cluster, "require"))[1].prepared == NEW


async def test_what_does_not_fit_is_refused_before_the_work(
    folder: Path, certificates: Path, model: Path
) -> None:
    extra = "[limits]\nprepared = 100000\n"
    async with hosts(folder, certificates, "unix", extra=extra) as cluster:
        await cluster.upload(model)
        said = r"^(dealer|evaluator-.): [\d,.]+ MB of .* do not fit .* raise limits.prepared there"
        with pytest.raises(StoreError, match=said):
            await prepare(cluster)
        with pytest.raises(ConfigError, match="3000 tokens in and 1 out are too many"):
            options = PrepareOptions(tokens_in=3000)
            await prepare_units(cluster.client, "tiny", options)
        assert not any(units_at(cluster).values())
        await quiet(cluster)


async def test_units_survive_a_restart_and_end_with_their_model(
    folder: Path, certificates: Path, model: Path
) -> None:
    from puma_actors.hosts.caller import remove_model

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await prepare(cluster, 2)
        await quiet(cluster)
        for role in COMPUTING:
            await cluster.kill(role)
        for role in COMPUTING:
            await cluster.start(role)
        await cluster.linked()
        assert (await answer(cluster, "require"))[1].prepared == NEW
        await remove_model(cluster.client, "tiny")
        await until(lambda: not any(units_at(cluster).values()))
