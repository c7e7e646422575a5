"""Certificates: issue, expiry and refusals."""

import os
import ssl
import stat
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from networks import make_certificates, wait_until_quiet
from reference import usual_logs

from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, TransportError
from puma_actors.base import certs, keyfiles
from puma_actors.base.certs import create_authority, describe, describe_all, issue, load_context
from puma_actors.base.identity import PeerIdentity
from puma_actors.cli import main
from puma_actors.transports import TcpTransport, TlsTransport, connect
from puma_actors.transports.tls import Credentials

DORA = PeerIdentity(Role.DEALER, "dora/éa b")
ANNA = PeerIdentity(Role.EVALUATOR_A, "anna")
HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority, and a certificate for Dora."""
    create_authority(tmp_path / "certs")
    issue(tmp_path / "certs", DORA, ["localhost", "127.0.0.1"])
    return tmp_path / "certs"


class Later(datetime):
    """A clock that is ahead."""

    ahead = timedelta(0)

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.now(tz) + cls.ahead


def shift_clock(monkeypatch: pytest.MonkeyPatch, **ahead: float) -> None:
    monkeypatch.setattr(Later, "ahead", timedelta(**ahead))
    monkeypatch.setattr(certs, "datetime", Later)


# -- files -----------------------------------------------------------------------------------------


def test_keys_are_private_and_nothing_else_is_left(folder: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}
    dora = "dealer.dora%2F%C3%A9a%20b"
    keys = {"ca.key": 0o600, f"{dora}.key": 0o600}
    assert modes == keys | {"ca.pem": 0o644, f"{dora}.pem": 0o644}
    assert folder.stat().st_mode & 0o077 == 0


def test_nothing_is_overwritten(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"ca\.pem exists and is not overwritten: `puma"):
        create_authority(folder)
    with pytest.raises(ConfigError, match=r"is not overwritten.*for another one, remove"):
        issue(folder, DORA, HOSTS)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_lost_race_overwrites_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certs, "refuse_to_overwrite", lambda *paths: None)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="is not overwritten"):
        create_authority(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_readable_key_is_refused(folder: Path) -> None:
    (folder / f"{certs.stem(DORA)}.key").chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others: run `chmod 600"):
        load_context(folder, DORA, server=True)
    (folder / "ca.key").chmod(0o604)
    with pytest.raises(ConfigError, match="can be read by others"):
        issue(folder, ANNA, HOSTS)


@pytest.mark.parametrize("name", ["ca.pem", "dealer.pem", "dealer.key"])
@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = make_certificates(tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    with pytest.raises(ConfigError, match=name):
        load_context(folder, PeerIdentity(Role.DEALER, "dealer"), server=False)


@pytest.mark.parametrize("name", [".", "ca.pem", "dealer.pem"])
def test_what_others_can_change_is_refused(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_certificates(tmp_path / "certs")
    path, dealer = folder / name, PeerIdentity(Role.DEALER, "dealer")
    mode = path.stat().st_mode & 0o777
    monkeypatch.setattr(keyfiles, "_is_own_group", lambda number: False)
    load_context(folder, dealer, server=True)
    for bit in (0o002, 0o020):
        path.chmod(mode | bit)
        with pytest.raises(ConfigError, match=f"{path} can be changed by others: run `chmod go-w"):
            load_context(folder, dealer, server=True)
        if name != "dealer.pem":
            with pytest.raises(ConfigError, match="can be changed by others"):
                issue(folder, ANNA, HOSTS)
    monkeypatch.setattr(keyfiles, "_is_own_group", lambda number: True)
    load_context(folder, dealer, server=True)  # a group without other members


def test_what_belongs_to_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cluster.toml"
    path.touch(0o644)
    status = list(path.stat())
    status[stat.ST_UID] = os.geteuid() + 1
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result(status))
    with pytest.raises(ConfigError, match=r"belongs to another user \(\d+\).*run `chown"):
        keyfiles.check_guarded(path)


@pytest.mark.parametrize("role", COMPUTING)
def test_a_party_needs_a_host(folder: Path, role: Role) -> None:
    with pytest.raises(ConfigError, match=r"accept no certificate.*without a host.*--host HOST"):
        issue(folder, PeerIdentity(role, "x"))
    for caller in (Role.OWNER, Role.CLIENT):
        issue(folder, PeerIdentity(caller, f"x-{role}"))


# -- what they say ---------------------------------------------------------------------------------


def test_describe(folder: Path) -> None:
    authority, dora = describe_all(folder)
    assert (authority.identity, authority.hosts) == (None, ())
    assert 3649 < authority.days_left < 3650
    assert dora.identity == DORA
    assert dora.hosts == ("localhost", "127.0.0.1")
    assert 89 < dora.days_left < 90
    assert dora.subject == "CN=PUMA dealer"
    with pytest.raises(ConfigError, match="does not exist: create an authority"):
        describe(folder / "nobody.pem")


@pytest.mark.parametrize("host", ["", "a b", "*.example", "exa_mple", "é", "a..b"])
def test_bad_hosts(folder: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="bad host"):
        issue(folder, ANNA, [host])


@pytest.mark.parametrize("days", [0, -1, float("nan"), 1e6])
def test_bad_days(folder: Path, days: float) -> None:
    with pytest.raises(ConfigError, match="days"):
        issue(folder, ANNA, HOSTS, days)


def test_a_certificate_does_not_outlive_its_authority(folder: Path) -> None:
    with pytest.raises(ConfigError, match="use fewer days"):
        issue(folder, ANNA, HOSTS, 4000)


@pytest.mark.parametrize(
    ("role", "name"),
    [(Role.TRACE, "x"), ("king", "x"), (Role.OWNER, ""), (Role.OWNER, "x" * 65), ("owner", "a\n")],
)
def test_bad_identities(role: Any, name: str) -> None:
    with pytest.raises(ConfigError):
        PeerIdentity(role, name)


@pytest.mark.parametrize(
    "uris",
    [[], ["https://x"], [DORA.uri, ANNA.uri], ["puma:dealer"], ["puma:king/x"], ["puma:trace/x"]],
)
def test_a_certificate_names_one_party(uris: list[str]) -> None:
    assert PeerIdentity.from_uris(["https://x", DORA.uri]) == DORA
    with pytest.raises(ConfigError):
        PeerIdentity.from_uris(uris)


# -- loading ---------------------------------------------------------------------------------------


def test_contexts_demand_tls_13_and_a_certificate(folder: Path) -> None:
    for server in (True, False):
        context = load_context(folder, DORA, server=server)
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname is not server


def test_expiry_is_told_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_context(folder, DORA, server=True)
    assert "expires soon" not in caplog.text
    shift_clock(monkeypatch, days=80)
    load_context(folder, DORA, server=True)
    assert "expires soon" in caplog.text
    shift_clock(monkeypatch, days=91)
    with pytest.raises(ConfigError, match=r"expired on 20.*puma certs renew --role dealer"):
        load_context(folder, DORA, server=True)
    shift_clock(monkeypatch, days=4000)
    with pytest.raises(ConfigError, match=r"ca\.pem expired on .*puma certs renew --authority"):
        load_context(folder, DORA, server=True)
    shift_clock(monkeypatch, days=-1)
    with pytest.raises(ConfigError, match="not valid yet: set this machine's clock"):
        load_context(folder, DORA, server=True)


def test_wrong_role_and_wrong_authority_are_found_at_home(folder: Path, tmp_path: Path) -> None:
    for ending in ("pem", "key"):
        (folder / f"{certs.stem(DORA)}.{ending}").rename(folder / f"{certs.stem(ANNA)}.{ending}")
    with pytest.raises(ConfigError, match="is not for evaluator-a 'anna': remove"):
        load_context(folder, ANNA, server=True)
    other = make_certificates(tmp_path / "other")
    (folder / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
    with pytest.raises(ConfigError, match="was not issued by"):
        load_context(folder, ANNA, server=True)


# -- between two parties ---------------------------------------------------------------------------


async def refused(
    server: Credentials, client: Credentials, caplog: pytest.LogCaptureFixture, host: str
) -> tuple[str, str]:
    """What the caller is told, and what the listener's log says."""
    async with await TlsTransport(server).listen("tls://127.0.0.1:0") as listener:
        where = f"tls://{host}:{listener.address.rpartition(':')[2]}"
        with pytest.raises(TransportError) as caught:
            await TlsTransport(client).connect(where)
        for _ in range(200):
            if "refused" in caplog.text:
                break
            await wait_until_quiet()
    return str(caught.value), caplog.text


async def test_another_authority(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_certificates(tmp_path / "other")
    here, there = Credentials(folder, DORA.role, DORA.name), Credentials(other, Role.CLIENT)
    told, logged = await refused(here, there, caplog, "127.0.0.1")
    assert "certificate was refused" in told
    assert "connection refused" in logged
    told, logged = await refused(  # the caller trusts the listener, but not the other way round
        here, Credentials(_trusting(other, folder, tmp_path), Role.CLIENT), caplog, "127.0.0.1"
    )
    assert "perhaps it refused this side's certificate" in told
    assert "certificate was refused" in logged


def _trusting(own: Path, trusted: Path, tmp_path: Path) -> Path:
    """The certificates of one folder, in a folder that trusts two authorities."""
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in own.iterdir():
        (mixed / path.name).write_bytes(path.read_bytes())
        (mixed / path.name).chmod(0o600)
    with (mixed / "ca.pem").open("ab") as file:
        file.write((trusted / "ca.pem").read_bytes())
    return mixed


async def test_expired_at_the_other_side(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shift_clock(monkeypatch, days=-40)
    issue(folder, ANNA, HOSTS, 30)
    with monkeypatch.context() as patch:
        patch.setattr(certs, "_check_dates", lambda *_: None)
        here, there = (Credentials(folder, who.role, who.name) for who in (DORA, ANNA))
        told, logged = await refused(here, there, caplog, "127.0.0.1")
    assert "perhaps it refused this side's certificate" in told
    assert "certificate has expired" in logged


async def test_wrong_host(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    issue(folder, ANNA, ["10.0.0.1", "node1.example"])
    here, there = (Credentials(folder, who.role, who.name) for who in (ANNA, DORA))
    told, _ = await refused(here, there, caplog, "127.0.0.1")
    assert "certificate was refused" in told


async def test_no_role_no_entry(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(PeerIdentity, "uri", "https://example.org/anna")
        issue(folder, ANNA, HOSTS)
    with monkeypatch.context() as patch:
        described = describe(folder / f"{certs.stem(DORA)}.pem")
        patch.setattr(certs, "describe", lambda path: described)
        patch.setattr(certs.Described, "identity", ANNA)
        context = load_context(folder, ANNA, server=False)
    monkeypatch.setattr("puma_actors.transports.tls.load_context", _contexts(context))
    here, there = (Credentials(folder, who.role, who.name) for who in (DORA, ANNA))
    told, logged = await refused(here, there, caplog, "127.0.0.1")
    assert "perhaps it refused" in told
    assert "names 0 roles instead of one" in logged


def _contexts(client: ssl.SSLContext) -> Any:
    def load(folder: Path, identity: PeerIdentity, *, server: bool) -> ssl.SSLContext:
        return load_context(folder, identity, server=True) if server else client

    return load


async def test_plain_callers_are_turned_away(folder: Path) -> None:
    dora = Credentials(folder, DORA.role, DORA.name)
    async with await TlsTransport(dora).listen("tls://127.0.0.1:0") as listener:
        plain = listener.address.replace("tls", "tcp")
        with pytest.raises(TransportError):
            await TcpTransport(insecure_no_tls=True).connect(plain)
    async with await TcpTransport(insecure_no_tls=True).listen("tcp://127.0.0.1:0") as listener:
        with pytest.raises(TransportError, match="does the other side speak TLS"):
            await TlsTransport(dora).connect(listener.address.replace("tcp", "tls"))


async def test_identities_are_known_at_both_ends(folder: Path) -> None:
    issue(folder, ANNA, HOSTS)
    options = f"certs={folder}&role=evaluator-a&name=anna"
    dora = TlsTransport(Credentials(folder, DORA.role, DORA.name))
    async with (
        await dora.listen("tls://localhost:0") as listener,
        await connect(f"{listener.address}?{options}") as left,
        await listener.accept() as right,
    ):
        assert left.peer_identity == DORA
        assert right.peer_identity == ANNA


@pytest.mark.parametrize("options", ["", "?role=dealer", "?certs=x", "?certs=x&role=king"])
async def test_addresses_without_a_certificate(options: str) -> None:
    with pytest.raises(ConfigError, match="certificate"):
        await connect(f"tls://localhost:1{options}")


# -- the command line ------------------------------------------------------------------------------


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def puma(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["puma", "certs", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert stop.code == 2
        out, err = capsys.readouterr()
        return out, err

    folder = ("--folder", tmp_path / "made")
    with usual_logs():
        assert "good for 3650 days" in puma("init", *folder)[0]
        assert "is not overwritten" in puma("init", *folder)[1]
        hosts = ("--host", "localhost", "--host", "10.0.0.1")
        out, err = puma("issue", "--role", "dealer", "--name", "dora", *hosts, *folder)
        assert "for dealer 'dora', good for 90 days" in out
        assert not err
        out, _ = puma("show", *folder)
        assert ("dealer.dora.pem" in out, "localhost, 10.0.0.1" in out) == (True, True)
        assert "puma certs init" in puma("show", "--folder", tmp_path / "none")[1]
        assert "king" in puma("issue", "--role", "king", *folder)[1]
        assert "add --host HOST" in puma("issue", "--role", "evaluator-a", *folder)[1]
    load_context(tmp_path / "made", PeerIdentity(Role.DEALER, "dora"), server=True)
