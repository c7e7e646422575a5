"""Drafts at parties of their own: same answers, same cost, and what a client must not announce."""

from pathlib import Path

import pytest
from conversation import Scripted, generated
from hosts import hosts, quiet
from reference import leaves_nothing

from models.programs.program import Batch
from protocols.base.shares import COMPUTING
from protocols.errors import ConfigError, PumaError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.roles.messages import NextMessage

IDS = [1, 3, 7]


@pytest.mark.parametrize("public", [False, True], ids=["private weights", "public weights"])
async def test_answers_equal_those_of_one_process(
    folder: Path, certificates: Path, model: Path, public: bool
) -> None:
    async with LocalCluster.from_pretrained(model, public_weights=public) as local:
        wanted = await generated(local, IDS, max_new_tokens=10)
    async with leaves_nothing(), hosts(folder, certificates, "tls") as cluster:
        await cluster.upload(model, public_weights=public)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            for draft in (Scripted(wanted, {3}), "ngram", model):
                assert await generated(remote, IDS, max_new_tokens=10, draft=draft) == wanted
                assert remote.usage.steps == remote.predict(len(IDS), remote.usage.drafts)
            assert remote.usage.tokens_a_step > 3
        await quiet(cluster)


async def test_a_draft_takes_no_more_tokens_than_the_parties_allow(
    folder: Path, certificates: Path, model: Path
) -> None:
    extra = "[limits]\ninference_tokens = 9\n"
    async with leaves_nothing(), hosts(folder, certificates, "tls", extra) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            wanted = await generated(remote, IDS, max_new_tokens=50)
            assert len(wanted) == 7
            draft = Scripted([*wanted, 1, 2, 3, 4, 5, 6, 7, 8])
            assert await generated(remote, IDS, max_new_tokens=50, draft=draft) == wanted
            assert remote.usage.stop_reason == "context"
        await quiet(cluster)


@pytest.mark.parametrize(
    ("accepted", "proposed", "reason"),
    [
        (1, 0, "the client's draft is unusable: 1 accepted of 0 proposed tokens"),
        (0, 4, "the client's draft is unusable: 4 proposed tokens, the request allows 3"),
    ],
)
async def test_what_a_client_must_not_announce(
    folder: Path, certificates: Path, model: Path, accepted: int, proposed: int, reason: str
) -> None:
    """The session ends, with the reason; the parties serve the next one."""
    async with leaves_nothing(), hosts(folder, certificates, "tls") as cluster:
        await cluster.upload(model)
        remote = await RemoteCluster.open(cluster.client, "tiny")
        with pytest.raises(PumaError, match=reason):
            async with remote:
                client = remote.client
                inference = await client.begin(Batch((3,), "last"), 9, draft=3)
                await client.step(inference, IDS)
                with pytest.raises(ConfigError, match=reason.partition(": ")[2]):
                    await client.step(inference, [1] * (1 + proposed), accepted)
                message = NextMessage(number=1, accepted=accepted, proposed=proposed)
                for role in COMPUTING:
                    await client.scheduler.send_control(role, message.header())
                await client.wait_reports(inference)
                await client.step(inference, [1])
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            assert len(await generated(remote, IDS, max_new_tokens=2, draft="ngram")) == 2
        await quiet(cluster)
