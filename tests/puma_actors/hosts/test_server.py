"""Five roles over sockets: upload, sessions, who is turned away, limits."""

from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
import transformers
from conversation import generated
from hosts import hosts, list_models, quiet
from networks import make_certificates
from reference import leaves_nothing
from waiting import in_time

from models.checkpoints.in_memory import open_model
from models.checkpoints.weights import open_checkpoint
from models.programs.plan import draft_plan
from models.programs.predict import share_bytes
from models.tokens.tokenizer import Tokenizer
from protocols.base.shares import COMPUTING, EVALUATORS, Role
from protocols.errors import Busy, ConfigError, TransportError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster, upload_model
from puma_actors.hosts import server
from puma_actors.hosts.admission import Request, enter
from puma_actors.hosts.caller import call, ping_all, problem_of, remove_model
from puma_actors.hosts.residents import session_bytes
from puma_actors.transports.frames import Frame, Kind

IDS = [1, 3, 7]


@pytest.mark.parametrize("scheme", ["tls", "unix"])
async def test_upload_then_two_clients_at_once(
    scheme: str, folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    async with leaves_nothing(), hosts(folder, certificates, scheme) as cluster:
        await cluster.upload(model)
        results: dict[int, np.ndarray] = {}
        sessions = []

        async def ask(number: int) -> None:
            remote = await RemoteCluster.open(cluster.client, "tiny")
            sessions.append(remote.session)
            async with remote:
                results[number] = await remote.forward(IDS)

        async with anyio.create_task_group() as group:
            for number in range(2):
                group.start_soon(ask, number)
        assert len(set(sessions)) == 2
        for logits in results.values():
            assert np.abs(logits - wanted).max() < 0.05
        await quiet(cluster)


# -- what is asked ---------------------------------------------------------------------------------


async def test_text_with_the_published_tokenizer(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with LocalCluster.from_pretrained(model) as local:
        expected = [token.id async for token in local.generate("I see", max_new_tokens=4)]
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            got = [token async for token in remote.generate("I see", max_new_tokens=4)]
            assert remote.plan.digest()
        assert [token.id for token in got] == expected
        assert remote.usage.total.rounds > 0
        with pytest.raises(ConfigError, match="not running"):
            await remote.forward(IDS)
        with pytest.raises(ConfigError, match="a session runs once"):
            await remote.__aenter__()


async def test_a_model_without_a_tokenizer(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        with open_checkpoint(model) as checkpoint:
            await upload_model(cluster.client, checkpoint, "bare")
        async with await RemoteCluster.open(cluster.client, "bare") as remote:
            with pytest.raises(ConfigError, match=r"none was published.*--tokenizer"):
                remote.encode("I see")
        async with await RemoteCluster.open(cluster.client, "bare", tokenizer=model) as remote:
            assert remote.encode("I see")


async def test_a_model_in_memory(folder: Path, certificates: Path, model: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    async with hosts(folder, certificates, "unix") as cluster:
        with open_model(theirs) as checkpoint:
            await upload_model(cluster.client, checkpoint, "held", tokenizer=tokenizer)
        for own in (None, tokenizer):
            async with await RemoteCluster.open(cluster.client, "held", tokenizer=own) as remote:
                ids = Tokenizer.load(model).chat("I see")
                assert remote.encode("I see") == ids
                chat = [{"role": "user", "content": "I see"}]
                options = {"do_sample": False, "max_length": len(ids) + 1, "pad_token_id": 0}
                assert len(await generated(remote, chat, **options)) == 1
                assert remote.usage.prompt_ids == ids
                with pytest.raises(ConfigError, match="num_beams=2 is not supported"):
                    await generated(remote, chat, num_beams=2)
        with pytest.raises(ConfigError, match=r"LlamaForCausalLM: .*open_model"):
            await upload_model(cluster.client, theirs, "other")


async def test_models_are_listed_and_removed(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates) as cluster:
        assert await list_models(cluster.client) == {}
        await cluster.upload(model)
        for role in (Role.OWNER, Role.CLIENT):
            (held,) = (await list_models(cluster.client, role)).values()
            assert set(held) == set(COMPUTING)
            assert problem_of(held) == ""
            assert held[Role.DEALER].architecture == "llama"
        with pytest.raises(ConfigError, match="has a model 'tiny' already"):
            await cluster.upload(model)
        gone = await remove_model(cluster.client, "tiny")
        assert [(each.peer, each.state) for each in gone.values()] == [
            (role, "removed") for role in COMPUTING
        ]
        with pytest.raises(ConfigError, match="no party has a model 'tiny'"):
            await remove_model(cluster.client, "tiny")
        with pytest.raises(ConfigError, match="has no model 'tiny'"):
            await RemoteCluster.open(cluster.client, "tiny")
        await cluster.upload(model)


async def test_ping(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.kill(Role.EVALUATOR_B)
        here = await ping_all(cluster.client, Role.CLIENT)
    for pinged in here[:2]:
        assert pinged.problem == ""
        assert pinged.round_trip is not None
        assert pinged.answer is not None
        links = {link.peer: link.problem for link in pinged.answer.links}
        assert len(links) == 2
        assert "no connection to evaluator-b" in links.pop("evaluator-b")
        assert list(links.values()) == [""]
    assert "nobody listens" in here[2].problem


# -- who is turned away ----------------------------------------------------------------------------


async def test_allow_lists_and_roles(folder: Path, certificates: Path, model: Path) -> None:
    extra = '[allow]\nclients = ["alice"]\n'
    async with hosts(folder, certificates, extra=extra) as cluster:
        await cluster.upload(model)
        with pytest.raises(ConfigError, match="client 'client' is not on the allow-list"):
            await RemoteCluster.open(cluster.client, "tiny")
        for role, purpose in (
            (Role.CLIENT, "upload"),
            (Role.CLIENT, "remove"),
            (Role.OWNER, "link"),
        ):
            with pytest.raises(ConfigError, match=r"not on the allow-list|may not ask for"):
                await call(cluster.client, role, Role.DEALER, purpose, model="tiny")  # type: ignore[arg-type]
        assert list(await list_models(cluster.client)) == ["tiny"]


async def test_another_role_than_in_the_certificate(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates) as cluster:
        address = cluster.addresses[Role.DEALER]
        channel = await cluster.client.transport(address, Role.CLIENT).connect(address)
        request = Request(role="owner", name="owner", purpose="list")
        with pytest.raises(ConfigError, match="called with the certificate of client 'client'"):
            await enter(channel, request)
        await channel.aclose()


async def test_a_certificate_of_another_authority(
    folder: Path, certificates: Path, tmp_path: Path
) -> None:
    others = make_certificates(tmp_path / "others")
    async with hosts(folder, certificates) as cluster:
        config = cluster.client.model_copy(update={"certificates": str(others)})
        with pytest.raises(ConfigError, match="certificate was refused"):
            await list_models(config)


@pytest.mark.parametrize(
    "first",
    [
        Frame(Kind.HELLO),
        Frame(Kind.CONTROL, header={"do": "infer"}),
        Frame(Kind.CONTROL, header={"do": "enter", "version": 99}),
        Frame(Kind.CONTROL, header={"do": "enter", "version": 1, "role": 3}),
    ],
)
async def test_other_first_words(folder: Path, certificates: Path, first: Frame) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        address = cluster.addresses[Role.DEALER]
        channel = await cluster.client.transport(address, Role.CLIENT).connect(address)
        await channel.send(first)
        assert (await channel.receive()).kind is Kind.ERROR
        await channel.aclose()
        assert await list_models(cluster.client) == {}


async def test_a_session_id_is_good_once(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        used = b"u" * 16
        for _ in range(2):
            visit = call(
                cluster.client, Role.CLIENT, Role.DEALER, "session", session=used, model="tiny"
            )
            if _ == 0:
                await (await visit).channel.aclose()
                await quiet(cluster)
            else:
                with pytest.raises(ConfigError, match="was used before"):
                    await visit


# -- limits ----------------------------------------------------------------------------------------


async def test_busy_and_later_not(
    folder: Path, certificates: Path, model: Path, wanted: np.ndarray
) -> None:
    extra = "[limits]\nsessions = 1\ninference_tokens = 5\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        async with await RemoteCluster.open(cluster.client, "tiny") as remote:
            with pytest.raises(Busy, match=r"is busy \(1 sessions\): try again in \d+ s"):
                await RemoteCluster.open(cluster.client, "tiny")
            with pytest.raises(ConfigError, match=r"6 tokens .* the parties allow 5"):
                await remote.forward([1] * 6)
            assert np.abs(await remote.forward(IDS) - wanted).max() < 0.05
        await quiet(cluster)
        async with await RemoteCluster.open(cluster.client, "tiny"):
            pass


async def test_a_client_that_does_not_read_its_answer_loses_its_place(
    folder: Path, certificates: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer has published files, which may be larger than what the system buffers."""

    async def unread(*args: Any) -> None:
        await anyio.sleep_forever()

    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        dealer = cluster.servers[Role.DEALER]
        short = dealer.config.timeouts.model_copy(update={"opening": 0.1})
        dealer.config = dealer.config.model_copy(update={"timeouts": short})
        monkeypatch.setattr(server, "admit", unread)
        with in_time(), pytest.raises(TransportError):
            await call(cluster.client, Role.CLIENT, Role.DEALER, "session", model="tiny")
        await quiet(cluster)


async def test_memory_is_set_aside(folder: Path, certificates: Path, model: Path) -> None:
    extra = "[limits]\nmemory = 300_000_000\n"
    async with hosts(folder, certificates, "unix", extra) as cluster:
        await cluster.upload(model)
        async with await RemoteCluster.open(cluster.client, "tiny"):
            with pytest.raises(Busy, match="no memory for another session"):
                await RemoteCluster.open(cluster.client, "tiny")
        await quiet(cluster)
        used = [server.residents.used for server in cluster.servers.values()]
        assert all(0 < size < 2_000_000 for size in used)  # the models stay


async def test_an_unused_model_makes_way(folder: Path, certificates: Path, model: Path) -> None:
    with open_checkpoint(model) as checkpoint:
        plan = draft_plan(checkpoint.config)
    memory = session_bytes(plan, 2048) + share_bytes(plan.config) * 3 // 2
    async with hosts(folder, certificates, "unix", f"[limits]\nmemory = {memory}\n") as cluster:
        for name in ("one", "two"):
            await cluster.upload(model, name)
            await quiet(cluster)
            async with await RemoteCluster.open(cluster.client, name) as remote:
                await remote.forward(IDS)
            await quiet(cluster)
        for role in EVALUATORS:
            residents = cluster.servers[role].residents
            assert [residents.loaded(name) for name in ("one", "two")] == [False, True]
        async with await RemoteCluster.open(cluster.client, "one") as remote:
            await remote.forward(IDS)


async def test_parties_at_swapped_addresses_and_unwanted_ones(
    folder: Path, certificates: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        allow = cluster.client.allow.model_copy(update={"parties": ["dealer", "evaluator-a"]})
        with pytest.raises(ConfigError, match=r"not in allow\.parties"):
            await list_models(cluster.client.model_copy(update={"allow": allow}))
        first, second = cluster.addresses[Role.DEALER], cluster.addresses[Role.EVALUATOR_A]
        cluster.addresses |= {Role.DEALER: second, Role.EVALUATOR_A: first}
        with pytest.raises(ConfigError, match=r"answers at .*, the address of"):
            await list_models(cluster.client)


async def test_a_model_that_never_fits(folder: Path, certificates: Path, model: Path) -> None:
    async with hosts(folder, certificates, "unix", "[limits]\nmemory = 2_000_000\n") as cluster:
        await cluster.upload(model)
        with pytest.raises(ConfigError, match=r"raise limits\.memory"):
            await RemoteCluster.open(cluster.client, "tiny")
