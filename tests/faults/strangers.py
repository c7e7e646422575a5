"""Callers and parties that are bad from the start: wrong messages or certificates, a full disk."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from networks import make_certificates

from faults.cell import Cell, check_failure
from faults.harness import DEADLINE, HANDSHAKE, SECOND, Cluster, Event, wait_until
from faults.hooks import wrong_bytes
from protocols.base.shares import COMPUTING, Role
from puma_actors.base.certs import issue, load_context
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.admission import Request
from puma_actors.transports.frames import NO_SESSION, Decoder, Frame, Kind, encode

FIRST_WORDS = ("garbage", "truncated", "oversize", "version", "other words", "replayed", "silence")
KINDS = ("another authority", "expired", "wrong role")
CERTIFICATES = [
    *((kind, "of a caller to dealer") for kind in KINDS),
    *((kind, "of evaluator-b to dealer") for kind in KINDS),
    *((kind, "of dealer to a caller") for kind in KINDS),
    *((kind, "of dealer to evaluator-a") for kind in KINDS),
]

# -- first words -----------------------------------------------------------------------------------


def words_cell(what: str, role: Role) -> Cell:
    """A caller with a good certificate that speaks wrongly to a party."""
    return Cell(what, f"a caller to {role}", "first words", run=_speak)


def _speak(cell: Cell, cluster: Cluster) -> None:
    role = Role(cell.where.rpartition(" ")[2])
    party, start = cluster.parties[role], len(cluster.parties[role].events())
    if cell.fault == "replayed":
        again = _request(Role.CLIENT, "session", session=os.urandom(16))
        with _connected(cluster, role) as first:
            first.sendall(again)
            assert _answer(first) is Kind.CONTROL, "the first time it must be let in"
        words = again
        cluster.at_rest()
    elif cell.fault == "other words":
        words = _request(Role.CLIENT, "list", version=99)
    else:
        words = b"" if cell.fault == "silence" else wrong_bytes(cell.fault)
    with _connected(cluster, role) as stranger:
        stranger.sendall(words)
        if cell.fault == "truncated":
            stranger.shutdown(socket.SHUT_WR)
        peer = f"127.0.0.1:{stranger.getsockname()[1]}"
        _wait_closed(stranger)
    wait_until(lambda: _told(party.events(start), peer), f"{role} logs {peer}")


def _told(events: list[Event], peer: str) -> bool:
    return any(e["level"] == "warning" and peer in e.get("peer", "") for e in events)


def _request(
    role: Role, purpose: str, *, session: bytes = NO_SESSION, version: int | None = None
) -> bytes:
    request = Request(role=str(role), name=str(role), purpose=purpose, model="tiny")  # type: ignore[arg-type]
    header = {"do": "enter", **request.model_dump()}
    if version is not None:
        header["version"] = version
    return b"".join(encode(Frame(Kind.CONTROL, session, (), header)))


@contextmanager
def _connected(
    cluster: Cluster, role: Role, context: ssl.SSLContext | None = None
) -> Iterator[ssl.SSLSocket]:
    """A TLS connection straight to a party, with a client's certificate unless told otherwise."""
    if context is None:
        identity = PeerIdentity(Role.CLIENT, "client")
        context = load_context(cluster.certificates, identity, server=False)
    plain = socket.create_connection(("127.0.0.1", cluster.ports[role]), timeout=DEADLINE)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as stranger:
        yield stranger


def _answer(stranger: ssl.SSLSocket) -> Kind | None:
    """The kind of the first frame that is not about the stream itself; None if there is none."""
    decoder = Decoder()
    with contextlib.suppress(OSError):
        while data := stranger.recv(1 << 16):
            for frame in decoder.feed(data):
                if frame.kind is not Kind.ALIVE:
                    return frame.kind
    return None


def _wait_closed(stranger: ssl.SSLSocket) -> None:
    """The party must hang up."""
    stranger.settimeout(HANDSHAKE + DEADLINE)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while stranger.recv(1 << 16):
            pass


# -- certificates ----------------------------------------------------------------------------------


def certificate_cell(kind: str, where: str) -> Cell:
    """A bad certificate, shown by one side to the other."""
    by_party = where.startswith("of dealer")
    name = {"another authority": "wrong certificate", "expired": "expired certificate"}
    return Cell(
        name.get(kind, kind), where, "handshake", run=_answer_wrongly if by_party else _call
    )


def _folder(cluster: Cluster, kind: str) -> Path:
    """Certificates of another authority, or expired ones of the right one."""
    folder = cluster.folder / kind.replace(" ", "-")
    if folder.exists():
        return folder
    if kind == "wrong certificate":
        return make_certificates(folder)
    folder.mkdir()
    for name in ("ca.pem", "ca.key"):
        (folder / name).write_bytes((cluster.certificates / name).read_bytes())
        (folder / name).chmod(0o600)
    for role in (*COMPUTING, Role.CLIENT):
        issue(folder, PeerIdentity(role, str(role)), ["127.0.0.1"], days=1e-5)
    last = (folder / f"{Role.CLIENT}.pem").read_bytes()
    ends = x509.load_pem_x509_certificate(last).not_valid_after_utc
    wait_until(lambda: datetime.now(UTC) > ends + timedelta(seconds=1), "certificates run out")
    return folder


def _context(cluster: Cluster, kind: str, role: Role, *, server: bool) -> ssl.SSLContext:
    """A party's TLS without the look at its own certificate. The other side's is not checked."""
    folder = _folder(cluster, kind)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stem = next(folder.glob(f"{role}*.pem"))
    context.load_cert_chain(stem, stem.with_suffix(".key"))
    return context


def _call(cell: Cell, cluster: Cluster) -> None:
    """A wrong caller: the dealer hangs up and logs it."""
    dealer = cluster.parties[Role.DEALER]
    start = len(dealer.events())
    role = Role.CLIENT if "a caller" in cell.where else Role.EVALUATOR_B
    if cell.fault == "wrong role":
        claimed = Role.OWNER if role is Role.CLIENT else Role.EVALUATOR_A
        identity = PeerIdentity(role, str(role))
        context = load_context(cluster.certificates, identity, server=False)
        purpose = "upload" if role is Role.CLIENT else "link"
    else:
        claimed, purpose = role, "list" if role is Role.CLIENT else "link"
        context = _context(cluster, cell.fault, role, server=False)
    with _connected(cluster, Role.DEALER, context) as stranger:
        peer = f"127.0.0.1:{stranger.getsockname()[1]}"
        with contextlib.suppress(OSError):
            stranger.sendall(_request(claimed, purpose))
        assert _answer(stranger) is not Kind.CONTROL, "it was let in"
        _wait_closed(stranger)
    wait_until(lambda: _told(dealer.events(start), peer), f"dealer logs {peer}")


@contextmanager
def _impostor(context: ssl.SSLContext) -> Iterator[int]:
    """A server that accepts TLS connections and stays silent; its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                plain, _ = listening.accept()
            except OSError:
                return
            plain.settimeout(DEADLINE)
            with contextlib.suppress(OSError):
                held.append(context.wrap_socket(plain, server_side=True))

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(DEADLINE)
        for each in held:
            each.close()


def _answer_wrongly(cell: Cell, cluster: Cluster) -> None:
    """Another program answers at the dealer's address; callers must notice and report it."""
    if cell.fault == "wrong role":
        _divert(cell, cluster, cluster.ports[Role.EVALUATOR_B])
        return
    with _impostor(_context(cluster, cell.fault, Role.DEALER, server=True)) as port:
        _divert(cell, cluster, port)


def _divert(cell: Cell, cluster: Cluster, port: int) -> None:
    if cell.where.endswith("a caller"):
        cluster.ways["caller", Role.DEALER].target = ("127.0.0.1", port)
        check_failure(cluster.generate(), {"certificate", "answers at"}, codes=(2,))
        return
    party = cluster.parties[Role.EVALUATOR_A]
    start = len(party.events())
    proxy = cluster.ways["evaluator-a", Role.DEALER]
    proxy.target = ("127.0.0.1", port)
    proxy.cut()

    def told() -> bool:
        events = [e for e in party.events(start) if e["event"] == "no link"]
        words = ("certificate", "answers at", "does not expect")
        return any(word in e["reason"] for e in events for word in words)

    wait_until(told, "evaluator-a logs who answers")
    check_failure(cluster.generate(), {"no connection to"}, codes=(2,))
    cluster.heal()
    cluster.linked()


# -- a full disk -----------------------------------------------------------------------------------


def disk_cell(role: Role) -> Cell:
    """A party whose disk is full when the owner uploads."""
    return Cell("disk full", str(role), "upload", run=_fill)


def _fill(cell: Cell, cluster: Cluster) -> None:
    party, start = (
        cluster.parties[Role(cell.where)],
        len(cluster.parties[Role(cell.where)].events()),
    )
    (cluster.folder / "full").write_text(cell.where)
    check_failure(cluster.upload(), {"its disk is full: free some space"})
    wait_until(
        lambda: any("its disk is full" in e.get("reason", "") for e in party.events(start)),
        f"{cell.where} logs it",
    )
    cluster.heal()
    cluster.at_rest()
    assert cluster.stored(SECOND) == [], "half an upload was kept"
