"""Permanent failures are reported at once, by any party; costly requests are limited."""

import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from cryptography.hazmat.primitives import hashes
from hosts import Hosts, hosts, list_models, quiet
from networks import make_certificates
from waiting import HANG, in_time, until

import puma_actors.hosts.caller
import puma_actors.hosts.peer_links
from protocols.base.shares import COMPUTING, Role
from protocols.errors import Busy, ConfigError, PumaError, RemoteProtocolError, TransportError
from puma_actors.api.remote import RemoteCluster
from puma_actors.base import certs
from puma_actors.base.build import program_digest
from puma_actors.base.certs import issue
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import load_certificate
from puma_actors.base.rotation.renewing import renew, renew_authority
from puma_actors.cli import main
from puma_actors.hosts import visits
from puma_actors.hosts.admission import LinkEntry, Request
from puma_actors.hosts.caller import call, ping_all
from puma_actors.hosts.peer_links import Links
from puma_actors.hosts.visits import watch_certificates
from puma_actors.transports import Refused
from puma_actors.transports.multiplexer import Mux

OTHER = "0" * 16
D, A, B = COMPUTING


def puma(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code and what is printed."""
    capfd.readouterr()
    code = 0
    before, sys.argv = sys.argv, ["puma", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, *capfd.readouterr()


def requests(**changes: str | int) -> Any:
    """A replacement for `Request` that makes other claims about the caller."""

    def make(**content: Any) -> Request:
        return Request(**{**content, **changes})

    return make


async def knows_why(cluster: Hosts, role: Role, peer: Role) -> None:
    """Wait until a party has a reason why there is no connection."""
    await until(lambda: peer in cluster.servers[role].links._failures)


# -- versions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["session", "upload", "link"])
async def test_other_programs_are_refused_by_name(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch, purpose: Any
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        monkeypatch.setattr(
            puma_actors.hosts.caller, "Request", requests(build=OTHER, software="9.9")
        )
        role = {"session": Role.CLIENT, "upload": Role.OWNER, "link": B}[purpose]
        with pytest.raises(ConfigError) as info:
            await call(cluster.config(str(role)), role, D, purpose, model="tiny")
        for part in (f"{role} runs version 9.9 (programs {OTHER})", "dealer version", "install"):
            assert part in str(info.value)
        assert program_digest() in str(info.value)
        assert await list_models(cluster.client) == {}  # what needs no programs works


async def test_another_version_of_the_first_words(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        monkeypatch.setattr(
            puma_actors.hosts.caller, "Request", requests(version=99, software="9.9")
        )
        with pytest.raises(ConfigError, match=r"version 99 \(software 9\.9\), this party \d"):
            await list_models(cluster.client)
        for pinged in await ping_all(cluster.client, Role.CLIENT):
            assert str(pinged.peer) in pinged.problem
            assert "install the same version" in pinged.problem


async def test_a_party_of_another_version_is_told_by_all_three(
    folder: Path,
    certificates: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        await cluster.upload(model)
        await quiet(cluster)
        await cluster.kill(B)

        def make(**content: Any) -> Request:
            other = content["role"] == B and content["purpose"] == "link"
            return Request(**content, **({"build": OTHER, "software": "9.9"} if other else {}))

        monkeypatch.setattr(puma_actors.hosts.peer_links, "Request", make)
        await cluster.start(B)
        for one, other in ((D, B), (A, B), (B, D), (B, A)):
            await knows_why(cluster, one, other)
        reason = r"evaluator-b runs version 9\.9 .*install the same"
        for role in COMPUTING:
            with pytest.raises(ConfigError, match=rf"{role} has no connection to .*: {reason}"):
                await call(cluster.client, Role.CLIENT, role, "session", model="tiny")
            assert not cluster.servers[role].residents.loaded("tiny")  # not even for that
        with in_time(), pytest.raises(ConfigError, match=reason):
            await RemoteCluster.open(cluster.client, "tiny")
        found = await ping_all(cluster.client, Role.CLIENT)
        for pinged in found:
            assert pinged.answer is not None
            said = [link.problem for link in pinged.answer.links if link.problem]
            assert len(said) == (2 if pinged.peer is B else 1)
            assert all("runs version 9.9" in problem for problem in said)
        where = ("--cluster", folder / "client.toml")
        command = ("generate", "-m", "tiny", "-p", "I", *where)
        code, _, err = await anyio.to_thread.run_sync(puma, capfd, *command)
        assert (code, "runs version 9.9" in err) == (2, True)


async def test_ping_shows_what_runs_where(
    folder: Path, certificates: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with hosts(folder, certificates) as cluster:
        where = ("--cluster", folder / "client.toml")
        assert cluster.client
        code, out, _ = await anyio.to_thread.run_sync(puma, capfd, "ping", "--json", *where)
        found = json.loads(out)
        assert (code, found["versions_differ"]) == (0, False)
        assert [row["who"] for row in found["parties"]] == ["here", *COMPUTING]
        assert {row["programs"] for row in found["parties"]} == {program_digest()}
        assert all(89 < row["days_left"] <= 90 for row in found["parties"])

        answer = cluster.servers[A].answer
        cluster.servers[A].answer = lambda **content: answer(  # type: ignore[method-assign]
            **content, build=OTHER, software="9.9"
        )
        code, out, err = await anyio.to_thread.run_sync(puma, capfd, "ping", *where)
        assert (code, OTHER in out, "9.9" in out) == (1, True, True)
        assert "versions differ: install the same version everywhere" in err
        assert "days left" in out


async def test_ping_of_one_party_and_of_certificates_that_expire(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made = make_certificates(tmp_path / "certs")
    renew(made, PeerIdentity(D, "dealer"), days=9.2)
    async with hosts(folder, made) as cluster:
        where = ("--cluster", folder / "client.toml")
        assert cluster.client
        code, _, err = await anyio.to_thread.run_sync(puma, capfd, "ping", *where)
        assert (code, "certificate at dealer expires in 9 days: renew it" in err) == (0, True)
        assert "evaluator-a" not in err
        for renewed in (renew(made, PeerIdentity(D, "dealer")), renew_authority(made)):
            assert renewed.days_left > 80  # the parties run on, and show it
            visit = await call(cluster.client, Role.CLIENT, D, "ping")
            own = load_certificate(made / "dealer.pem").fingerprint(hashes.SHA256()).hex()
            assert visit.channel.peer_identity is not None
            assert visit.channel.peer_identity.certificate == own
            assert visit.answer.days is not None and visit.answer.days > 80
            await visit.channel.aclose()
        await cluster.kill(A)
        for one, wanted in ((D, 0), (A, 1)):  # whether it answers; another one may be down
            own = ("--role", "dealer", "--to", one, "--json", *where)
            code, out, _ = await anyio.to_thread.run_sync(puma, capfd, "ping", *own)
            found = json.loads(out)
            assert (code, [way["to"] for way in found["ways"]]) == (wanted, [one])
            assert found["ways"][0]["throughput"] is None


# -- certificates, names, hosts --------------------------------------------------------------------


async def test_a_name_that_is_not_allowed_is_told_at_both_ends(
    folder: Path, certificates: Path, model: Path
) -> None:
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        await cluster.kill(D)
        await cluster.start(D, '[allow]\nparties = ["evaluator-a", "evaluator-a/evaluator-b"]\n')
        await knows_why(cluster, D, B)
        await knows_why(cluster, B, D)
        reason = r"evaluator-b 'evaluator-b' is not on the allow-list of dealer"
        for one, other in ((D, B), (B, D)):
            with pytest.raises(ConfigError, match=f"{one} has no connection to {other}: {reason}"):
                await call(cluster.client, Role.CLIENT, one, "session", model="tiny")


async def test_a_party_with_a_certificate_of_another_authority(
    folder: Path, tmp_path: Path, certificates: Path, model: Path
) -> None:
    others = make_certificates(tmp_path / "others")
    async with hosts(folder, certificates) as cluster:
        await cluster.upload(model)
        await cluster.kill(B)
        good, cluster.certificates = cluster.certificates, others
        await cluster.start(B)
        cluster.certificates = good
        await knows_why(cluster, B, D)
        with pytest.raises(ConfigError, match="evaluator-b has no connection to dealer: no TLS"):
            cluster.servers[B].links.get(D)
        with anyio.fail_after(cluster.client.timeouts.retry / 2):
            with pytest.raises(ConfigError, match=r"evaluator-b: no TLS .*certificate was refused"):
                await RemoteCluster.open(cluster.client, "tiny")


async def test_reasons_that_stay_and_reasons_that_pass(folder: Path, certificates: Path) -> None:
    async with hosts(folder, certificates, "unix") as cluster:
        links = Links(cluster.client, D)
        for error in (ConfigError("x"), RemoteProtocolError("x"), Refused("x")):
            links.failed(B, error)
            with pytest.raises(ConfigError, match="dealer has no connection to evaluator-b: x"):
                links.get(B)
        links.failed(B, TransportError("x"))
        with pytest.raises(Busy, match="dealer has no connection to evaluator-b: x; try again"):
            links.get(B)
        links._failures[B] = (-100.0, ConfigError("long ago"))
        with pytest.raises(Busy, match="is it running"):
            links.get(B)
        links.failed(Role.CLIENT, ConfigError("x"))  # a role without a link to it
        assert Role.CLIENT not in links._failures


async def test_an_unknown_host_is_told_at_once(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host == "no.such.host":
            raise socket.gaierror(-2, "Name or service not known")
        return usual(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with hosts(folder, certificates, "unix") as cluster:
        cluster.addresses = {**cluster.addresses, A: "tls://no.such.host:7102"}
        text = r"the host of tls://no\.such\.host:7102 is unknown .*check \[parties\]"
        with anyio.fail_after(cluster.client.timeouts.retry / 2):
            with pytest.raises(ConfigError, match=text):
                await list_models(cluster.client)
            with pytest.raises(ConfigError, match=text):
                await RemoteCluster.open(cluster.client, "tiny")


async def test_what_stays_is_told_rather_than_what_passes(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = anyio.Event()

    async def answer(config: Any, role: Role, peer: Role, *args: Any, **options: Any) -> Any:
        if peer is D:
            told.set()
            raise Busy("dealer has no connection to evaluator-b now")
        await told.wait()
        if peer is A:
            await anyio.sleep_forever()
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        raise ConfigError("evaluator-b runs another version")

    monkeypatch.setattr(puma_actors.hosts.caller, "call", answer)
    monkeypatch.setattr(puma_actors.hosts.caller, "_LAST_WORDS", HANG)
    async with hosts(folder, certificates, "unix") as cluster:
        with pytest.raises(ConfigError, match="another version"):
            await puma_actors.hosts.caller.call_all(cluster.client, Role.CLIENT, "session")

        async def busy(config: Any, role: Role, peer: Role, *args: Any, **options: Any) -> Any:
            if peer is not D:
                await anyio.sleep_forever()
            raise Busy("dealer is busy")

        monkeypatch.setattr(puma_actors.hosts.caller, "call", busy)
        monkeypatch.setattr(puma_actors.hosts.caller, "_LAST_WORDS", 0.05)
        with in_time(), pytest.raises(Busy, match="dealer is busy"):
            await puma_actors.hosts.caller.call_all(cluster.client, Role.CLIENT, "session")


# -- what costs ------------------------------------------------------------------------------------


async def test_one_measurement_at_a_time(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another caller waits a while, and is then told to try again later."""
    begun, go_on, running, most = anyio.Event(), anyio.Event(), 0, 0

    async def throughput(self: Mux, nbytes: int = 0) -> float:
        nonlocal running, most
        running += 1
        most = max(most, running)
        begun.set()
        await go_on.wait()
        running -= 1
        return 1.0

    async with hosts(folder, certificates, "unix") as cluster:
        links = cluster.servers[D].links
        monkeypatch.setattr(Mux, "throughput", throughput)
        monkeypatch.setattr(puma_actors.hosts.peer_links, "_PATIENCE", 0.05)
        results: list[list[LinkEntry]] = []

        async def measure() -> None:
            results.append(await links.measure())

        async with anyio.create_task_group() as group:
            group.start_soon(measure)
            await begun.wait()
            with pytest.raises(Busy, match="dealer is measuring for another caller: try again"):
                await call(cluster.client, Role.CLIENT, D, "ping", measure=True)
            monkeypatch.setattr(puma_actors.hosts.peer_links, "_PATIENCE", HANG)
            group.start_soon(measure)
            await anyio.wait_all_tasks_blocked()
            go_on.set()
        assert [len(entries) for entries in results] == [2, 2]
        assert most == 1


async def test_so_many_measurements_a_minute(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: Links) -> list[LinkEntry]:
        return []

    monkeypatch.setattr(Links, "_measure", nothing)
    monkeypatch.setattr(puma_actors.hosts.peer_links, "_MINUTE", HANG)
    async with hosts(folder, certificates, "unix") as cluster:

        async def ping(measure: bool = True) -> None:
            visit = await call(cluster.client, Role.CLIENT, D, "ping", measure=measure)
            await visit.channel.aclose()

        for _ in range(puma_actors.hosts.peer_links._MEASURED):
            await ping()
        with pytest.raises(Busy, match="dealer has measured its connections 12 times in a minute"):
            await ping()
        await ping(measure=False)
        monkeypatch.setattr(puma_actors.hosts.peer_links, "_MINUTE", 0.0)
        await ping()


async def test_so_many_pings_at_a_time(
    folder: Path, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visits, "_PING_TIME", HANG)
    async with hosts(folder, certificates, "unix") as cluster:
        held = [
            await call(cluster.client, Role.CLIENT, D, "ping") for _ in range(visits._MOST_PINGS)
        ]
        with pytest.raises(Busy, match="dealer is pinged by 16 others: try again"):
            await call(cluster.client, Role.CLIENT, D, "ping")
        assert await list_models(cluster.client) == {}
        for each in held:
            await each.channel.aclose()
        await until(lambda: not cluster.servers[D].visits._pings)
        await (await call(cluster.client, Role.CLIENT, D, "ping")).channel.aclose()


# -- certificates that run out ---------------------------------------------------------------------


async def test_a_running_party_says_every_day_that_its_certificate_expires(
    folder: Path,
    tmp_path: Path,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = make_certificates(tmp_path / "certs")
    issue(made, PeerIdentity(D, "dora"), ["localhost"], days=2.5)
    days = 0

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=days)

    class Over(Exception):
        pass

    async def sleep(seconds: float) -> None:
        nonlocal days
        assert seconds == 86400
        days += 1
        if days == 4:
            raise Over

    monkeypatch.setattr(certs, "datetime", Later)
    async with hosts(folder, certificates) as cluster:
        config = cluster.config("dealer").model_copy(
            update={"certificates": str(made), "name": "dora"}
        )
        monkeypatch.setattr(visits.anyio, "sleep", sleep)
        caplog.clear()
        with pytest.raises(Over):
            await watch_certificates(config, D)
        monkeypatch.undo()
    lines = [line for line in caplog.text.splitlines() if "dealer.dora.pem" in line]
    assert ["certificate expires soon" in line for line in lines] == [True, True, True, False]
    assert "certificate has expired" in lines[3]
    assert all("days_left=" in line and f"{datetime.now(UTC):%Y}" in line for line in lines)


async def test_a_party_watches_its_certificate(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_certificates(tmp_path / "certs")
    (made / "dealer.pem").unlink()
    (made / "dealer.key").unlink()
    issue(made, PeerIdentity(D, "dealer"), ["localhost", "127.0.0.1"], days=5)
    async with hosts(folder, made) as cluster:
        await until(lambda: "days_left=5.0" in caplog.text)
        (pinged, *_) = await ping_all(cluster.client, Role.CLIENT)
        assert pinged.answer is not None and pinged.answer.days is not None
        assert 4 < pinged.answer.days < 5


async def test_what_an_expired_certificate_is_called(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this machine before it calls, and by a caller whose clock is right."""
    made = make_certificates(tmp_path / "certs")
    async with hosts(folder, made) as cluster:

        class Later(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return datetime.now(tz) + timedelta(days=91)

        with monkeypatch.context() as patch:
            patch.setattr(certs, "datetime", Later)
            with pytest.raises(PumaError, match=r"owner\.pem expired on .*puma certs renew"):
                await list_models(cluster.client)
