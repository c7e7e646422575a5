"""Certificates renewed on the authority's machine, and signed for keys made elsewhere."""

import fcntl
import os
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from networks import make_certificates

from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.base import certs
from puma_actors.base.certs import create_authority, describe, issue, load_context
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import former_key, load_certificate, load_key
from puma_actors.base.rotation import placing
from puma_actors.base.rotation.renewing import due, renew, renew_authority
from puma_actors.base.rotation.requesting import install, request, sign_request
from puma_actors.transports import TlsTransport
from puma_actors.transports.tls import Credentials

DEALER = PeerIdentity(Role.DEALER, "dealer")
OLGA = PeerIdentity(Role.OWNER, "olga")
EVA = PeerIdentity(Role.EVALUATOR_A, "eva")
HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An authority, and a dealer's certificate."""
    create_authority(tmp_path / "certs")
    issue(tmp_path / "certs", DEALER, HOSTS)
    return tmp_path / "certs"


@pytest.fixture
def party(tmp_path: Path, folder: Path) -> Path:
    """The folder of a party's own machine."""
    install(tmp_path / "party", folder / "ca.pem")
    return tmp_path / "party"


def at(monkeypatch: pytest.MonkeyPatch, **ahead: float) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(**ahead)

    monkeypatch.setattr(certs, "datetime", Later)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def usable(folder: Path, identity: PeerIdentity = DEALER) -> ssl.SSLContext:
    return load_context(folder, identity, server=True)


# -- at the authority ------------------------------------------------------------------------------


def test_a_pair_is_replaced_by_one_for_the_same_name_and_hosts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old = contents(folder), describe(folder / "dealer.pem")
    at(monkeypatch, days=85)
    new = renew(folder, DEALER)
    assert (new.identity, new.hosts, new.path) == (old.identity, old.hosts, old.path)
    assert new.not_after - old.not_after > timedelta(days=84)
    after = contents(folder)
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"dealer.pem", "dealer.key"}
    assert (folder / "dealer.key").stat().st_mode & 0o777 == 0o600
    usable(folder)


def test_an_expired_pair_can_be_renewed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, days=91)
    with pytest.raises(ConfigError, match=r"expired on .*puma certs renew --role dealer --name d"):
        usable(folder)
    renew(folder, DEALER)
    usable(folder)


def test_those_that_are_due(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(folder, OLGA, days=20)
    assert [found.identity for found in due(folder, 30)] == [OLGA]
    assert {found.identity for found in due(folder, 90)} == {OLGA, DEALER}
    assert due(folder, 0) == []
    at(monkeypatch, days=21)
    assert [found.identity for found in due(folder, 0)] == [OLGA]


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Let the process end before it renames its file number `step`; what was renamed is listed."""
    done: list[str] = []
    move = placing.move

    def stop(source: Path, target: Path) -> None:
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(target.name)
        move(source, target)

    monkeypatch.setattr(placing, "move", stop)
    return done


@pytest.mark.parametrize("step", range(3))
def test_a_crash_leaves_a_valid_pair(
    folder: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = describe(folder / "dealer.pem")
    with monkeypatch.context() as patch:
        patch.setattr(placing.shutil, "rmtree", lambda path: None)  # a crash tidies nothing up
        done = crash_at(patch, step)
        with pytest.raises(KeyboardInterrupt):
            renew(folder, DEALER)
    assert done == ["dealer.key.old", "dealer.key"][:step]
    assert describe(folder / "dealer.pem") == old
    usable(folder)
    names = {"ca.pem", "ca.key", "dealer.pem", "dealer.key"}
    for _ in range(2):  # the second time nothing is left of the crash
        renew(folder, DEALER)
        usable(folder)
        assert {path.name for path in folder.iterdir()} == names


def test_a_crash_after_a_crash(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 1, 0, 1, 1):
        with monkeypatch.context() as patch:
            crash_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                renew(folder, DEALER)
        usable(folder)
    renew(folder, DEALER)
    assert not former_key(folder / "dealer.key").exists()


def test_a_pair_that_no_party_could_use_is_not_put_in_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)

    def refuse(*_: object, **__: object) -> None:
        raise ConfigError("unusable")

    monkeypatch.setattr(placing, "load_context", refuse)
    with pytest.raises(ConfigError, match="unusable"):
        renew(folder, DEALER)
    assert contents(folder) == before


def test_an_authority_with_the_same_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, key = (folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes()
    at(monkeypatch, days=3600)
    assert 3649 < renew_authority(folder).days_left <= 3650
    assert (folder / "ca.key").read_bytes() == key
    new = (folder / "ca.pem").read_bytes()
    assert new != old
    renew(folder, DEALER, 30)
    for authority in (old, new):  # a peer that has not got the new one yet
        (folder / "ca.pem").write_bytes(authority)
        usable(folder)
    at(monkeypatch, days=3651 + 3600)
    with pytest.raises(ConfigError, match=r"ca\.pem expired on .*puma certs renew --authority"):
        renew(folder, DEALER)
    renew_authority(folder)
    renew(folder, DEALER)
    usable(folder)


def test_refusals_name_what_is_wrong_and_what_helps(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no certificate for owner 'olga'.*puma certs issue"):
        renew(folder, OLGA)
    with pytest.raises(ConfigError, match=r"in less than 5000 days.*renew --authority"):
        renew(folder, DEALER, 5000)
    (folder / "dealer.pem").rename(folder / "owner.olga.pem")
    with pytest.raises(ConfigError, match=r"is for dealer 'dealer', not for owner 'olga'"):
        renew(folder, OLGA)
    (folder / "owner.olga.pem").rename(folder / "dealer.pem")
    (folder / "dealer.key").rename(tmp_path / "dealer.key")
    with pytest.raises(ConfigError, match=r"dealer\.key is not here.*certs request.*certs sign"):
        renew(folder, DEALER)
    (tmp_path / "dealer.key").rename(folder / "dealer.key")
    other = create_authority(tmp_path / "other").parent
    issue(other, DEALER, HOSTS)
    (folder / "dealer.pem").write_bytes((other / "dealer.pem").read_bytes())
    with pytest.raises(ConfigError, match="was not issued by the authority in"):
        renew(folder, DEALER)
    (folder / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match="do not belong together"):
        renew_authority(folder)
    (folder / "ca.key").unlink()
    for attempt in (lambda: renew(folder, DEALER), lambda: renew_authority(folder)):
        with pytest.raises(ConfigError, match=r"has no ca\.key.*machine.*certs request"):
            attempt()


def locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def test_one_change_at_a_time(folder: Path, party: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    move = placing.move

    def look(source: Path, target: Path) -> None:
        seen.append(locked(target.parent))
        move(source, target)

    monkeypatch.setattr(placing, "move", look)
    renew(folder, DEALER)
    renew_authority(folder)
    file, _ = request(party, EVA)
    install(party, sign_request(folder, file, EVA, HOSTS)[0].path)
    assert len(seen) == 3 + 1 + 1 + 1 + 2
    assert all(seen)
    assert not locked(folder)


# -- keys that stay where they are made ------------------------------------------------------------


def test_a_key_that_never_leaves_its_machine(folder: Path, party: Path) -> None:
    for number in range(2):  # the first certificate, and a renewal
        file, mark = request(party, EVA)
        assert request(party, EVA) == (file, mark)  # the same key
        key = load_key(party / "evaluator-a.eva.key.new")
        hosts = () if number else ("localhost",)
        made, seen = sign_request(folder, file, EVA, hosts)
        assert (made.hosts, seen) == (("localhost",), mark)
        assert not (folder / "evaluator-a.eva.key").exists()
        install(party, made.path)
        assert load_certificate(party / "evaluator-a.eva.pem").public_key() == key.public_key()
        usable(party, EVA)
        names = {"ca.pem", "evaluator-a.eva.pem", "evaluator-a.eva.key"}
        assert {path.name for path in party.iterdir()} == names
    with pytest.raises(ConfigError, match=r"evaluator-a\.eva\.key is not here"):
        renew(folder, EVA)


def test_the_pair_in_use_stays_until_the_new_one_is_there(folder: Path, party: Path) -> None:
    file, _ = request(party, EVA)
    install(party, sign_request(folder, file, EVA, HOSTS)[0].path)
    before = contents(party)
    request(party, EVA)
    assert {name: data for name, data in contents(party).items() if name in before} == before
    usable(party, EVA)


def test_a_pair_made_at_the_authority_is_installed(
    folder: Path, party: Path, tmp_path: Path
) -> None:
    (tmp_path / "sent").mkdir()
    for _ in range(2):
        for name in ("dealer.pem", "dealer.key"):
            (tmp_path / "sent" / name).write_bytes((folder / name).read_bytes())
            (tmp_path / "sent" / name).chmod(0o600)
        install(party, tmp_path / "sent" / "dealer.pem")
        usable(party)
        assert (party / "dealer.pem").read_bytes() == (folder / "dealer.pem").read_bytes()
        renew(folder, DEALER)


def test_what_is_not_signed(folder: Path, party: Path) -> None:
    file, _ = request(party, EVA)
    with pytest.raises(ConfigError, match=r"asks for evaluator-a 'eva', not for owner 'olga'"):
        sign_request(folder, file, OLGA)
    with pytest.raises(ConfigError, match="add --host HOST"):
        sign_request(folder, file, EVA)
    with pytest.raises(ConfigError, match=r"dealer\.key is here.*puma certs renew"):
        sign_request(folder, request(party, DEALER)[0], DEALER, HOSTS)
    text = file.read_text()
    middle = len(text) // 2
    for damaged in ("", "nonsense", text[:middle] + text[middle + 4 :]):
        file.write_text(damaged)
        with pytest.raises(ConfigError, match=r"evaluator-a\.eva\.csr .*puma certs request"):
            sign_request(folder, file, EVA, HOSTS)
    assert not (folder / "evaluator-a.eva.pem").exists()
    with pytest.raises(ConfigError, match=r"has no ca\.key"):
        sign_request(party, request(party, EVA)[0], EVA, HOSTS)


def test_what_is_not_installed(folder: Path, party: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no key in .* belongs to .*puma certs request"):
        install(party, _alone(folder / "dealer.pem", tmp_path))
    other = create_authority(tmp_path / "other").parent
    with pytest.raises(ConfigError, match="of an authority with another key"):
        install(party, other / "ca.pem")
    file, _ = request(party, EVA)
    made, _ = sign_request(other, file, EVA, HOSTS)
    before = contents(party)
    with pytest.raises(ConfigError, match="was not issued by"):
        install(party, made.path)
    assert contents(party) == before
    (party / "ca.pem").unlink()
    with pytest.raises(ConfigError, match=r"has no ca\.pem.*puma certs install ca\.pem"):
        install(party, made.path)


def _alone(path: Path, folder: Path) -> Path:
    """A copy without the key beside it."""
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    return copy


def test_an_authority_that_was_renewed_is_installed(folder: Path, party: Path) -> None:
    renew_authority(folder)
    install(party, folder / "ca.pem")
    assert (party / "ca.pem").read_bytes() == (folder / "ca.pem").read_bytes()


# -- a running party -------------------------------------------------------------------------------


async def shown(listener: Any, folder: Path) -> str:
    """The fingerprint of the certificate that a caller is shown."""
    client = TlsTransport(Credentials(folder, Role.CLIENT))
    async with await client.connect(listener.address) as near, await listener.accept():
        return near.peer_identity.certificate


async def test_new_connections_use_the_new_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_certificates(tmp_path)
    server = TlsTransport(Credentials(folder, Role.DEALER))
    async with await server.listen("tls://127.0.0.1:0") as listener:
        first = await shown(listener, folder)
        assert await shown(listener, folder) == first
        renew(folder, DEALER)
        second = await shown(listener, folder)
        assert second != first
        key = (folder / "dealer.key").read_bytes()
        (folder / "dealer.key").write_bytes(key[:40])  # it is just being copied
        assert await shown(listener, folder) == second
        assert "new certificate not used, the former one stays" in caplog.text
        caplog.clear()
        assert await shown(listener, folder) == second
        assert not caplog.text  # told once
        (folder / "dealer.key").write_bytes(key)
        renew(folder, PeerIdentity(Role.CLIENT, "client"))
        renew_authority(folder)
        assert await shown(listener, folder) == second


# -- the command line ------------------------------------------------------------------------------

Puma = Callable[..., tuple[int, str, str]]


def test_commands(folder: Path, tmp_path: Path, puma: Puma) -> None:
    where = ("--folder", folder)
    code, out, _ = puma("certs", "renew", *where)
    assert (code, "nothing in" in out, "within 30 days" in out) == (0, True, True)
    code, out, _ = puma("certs", "renew", "--within", 90, *where)
    assert (code, "renewed for dealer 'dealer'" in out, "dealer.key" in out) == (0, True, True)
    assert "good for 10 days" in puma("certs", "renew", "--role", "dealer", "--days", 10, *where)[1]
    assert "ca.pem renewed, good for 3650 days" in puma("certs", "renew", "--authority", *where)[1]
    for bad in (("--authority", "--role", "dealer"), ("--name", "x")):
        assert puma("certs", "renew", *bad, *where)[0] == 2
    party = ("--folder", tmp_path / "party")
    assert puma("certs", "request", "--role", "evaluator-a", *party)[0] == 0
    file = tmp_path / "party" / "evaluator-a.csr"
    asked = ("--role", "evaluator-a", "--host", "localhost")
    code, out, err = puma("certs", "sign", file, *asked, *where)
    assert (code, "evaluator-a.pem made for" in out) == (0, True), err
    assert puma("certs", "install", folder / "evaluator-a.pem", *party)[0] == 2  # no ca.pem
    for name in ("ca.pem", "evaluator-a.pem"):
        code, out, err = puma("certs", "install", folder / name, *party)
        assert (code, "in place" in out) == (0, True), err
    usable(tmp_path / "party", PeerIdentity(Role.EVALUATOR_A, "evaluator-a"))
    code, out, _ = puma("certs", "renew", "--within", 90, *where)  # the dealer's, not this one
    assert (code, "renewed for dealer" in out, "its key is on its own machine" in out) == (
        0,
        True,
        True,
    )
