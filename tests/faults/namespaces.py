"""Parties in separate network namespaces, joined by veth pairs and a bridge: what is between
them is then a network that can be unplugged. Needs the right to make namespaces.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import transformers
from reference import save_model, save_tokenizer

from faults.harness import (
    DEADLINE,
    HANDSHAKE,
    MODEL,
    PROMPT,
    SILENCE,
    Caller,
    Party,
    links,
    wait_until,
)
from faults.roles import start
from protocols.base.shares import COMPUTING, Role
from puma_actors.base.certs import create_authority, issue
from puma_actors.base.identity import PeerIdentity

_ROLES = (*COMPUTING, Role.CLIENT, Role.OWNER)
_NET, _PORT = "10.213.77", 7101


def _ip(*arguments: str) -> None:
    command = ["ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _name(who: str) -> str:
    return f"puma-{os.getpid()}-{who}"


def why_not() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if shutil.which("ip") is None:
        return "network namespaces need the program ip"
    name = _name("probe")
    try:
        _ip("netns", "add", name)
        _ip("netns", "exec", name, "ip", "link", "add", "probe", "type", "veth")
    except OSError as error:
        return f"network namespaces are not permitted here ({error})"
    finally:
        with suppress(OSError):
            _ip("netns", "del", name)
    return ""


def _hosts() -> dict[Role, str]:
    """The owner shares the client's host."""
    places = [*COMPUTING, Role.CLIENT]
    found = {role: f"{_NET}.{index}" for index, role in enumerate(places, 1)}
    return {**found, Role.OWNER: found[Role.CLIENT]}


@contextmanager
def network() -> Iterator[None]:
    """A bridge in a namespace, and one namespace for each party and one for the callers."""
    made = [_name(who) for who in ("hub", *(str(r) for r in (*COMPUTING, Role.CLIENT)))]
    hub, hosts = made[0], _hosts()
    try:
        for name in made:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for index, role in enumerate((*COMPUTING, Role.CLIENT)):
            name, port = _name(role), f"port{index}"
            _ip("-n", hub, "link", "add", port, "type", "veth", "peer", "wire", "netns", name)
            _ip("-n", hub, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{hosts[role]}/24", "dev", "wire")
            _ip("-n", name, "link", "set", "wire", "up")
        yield
    finally:
        for name in made:
            with suppress(OSError):
                _ip("netns", "del", name)


def unplug(role: Role, *, again: bool = False) -> None:
    """Take a role's cable out of the bridge, or put it back."""
    state = "up" if again else "down"
    _ip("-n", _name("hub"), "link", "set", f"port{COMPUTING.index(role)}", state)


def _configure(folder: Path, who: str) -> Path:
    path = folder / f"{who}.toml"
    parties = "".join(f'{r} = "tls://{_hosts()[r]}:{_PORT}"\n' for r in COMPUTING)
    path.write_text(
        f'certificates = "certs"\nstore = "{who}-store"\n[parties]\n{parties}'
        f"[timeouts]\nretry = 5.0\nsilence = {SILENCE}\nhandshake = {HANDSHAKE}\n"
    )
    return path


def _caller(folder: Path, number: int, *arguments: object) -> Caller:
    out, errors = (folder / f"call-{number}.{kind}" for kind in ("out", "err"))
    role = Role.OWNER if arguments[0] == "upload" else Role.CLIENT
    where = ["--cluster", folder / "caller.toml"]
    name = _name(Role.CLIENT)
    return Caller(start([*arguments, *where], folder, role, out, errors, name), out, errors)


def _answers(folder: Path, number: int) -> str:
    caller = _caller(folder, number, "generate", "-m", MODEL, "-p", PROMPT, "-n", 4)
    caller.process.join(DEADLINE)
    assert caller.process.exitcode == 0, caller.errors.read_text()
    return caller.out.read_text().splitlines()[0]


def answer_across_namespaces(folder: Path) -> None:
    """Upload and ask; unplug evaluator-b in the middle of an answer; plug it in and ask again."""
    transformers.utils.logging.disable_progress_bar()
    create_authority(folder / "certs")
    for role in _ROLES:
        issue(folder / "certs", PeerIdentity(role, str(role)), [_hosts()[role]])
    model = save_tokenizer(save_model(folder / "model", seed=3))
    _configure(folder, "caller")
    with network():
        parties = [
            Party(role, _configure(folder, role), folder / f"{role}.log") for role in COMPUTING
        ]
        try:
            for party in parties:
                command = ["party", "--role", party.role, "--config", party.config]
                name, log = _name(party.role), party.log
                party.process = start(command, folder, party.role, log, log, name)
            _wait_links(parties)
            upload = _caller(folder, 0, "upload", model, "--name", MODEL)
            upload.process.join(DEADLINE)
            assert upload.process.exitcode == 0, upload.errors.read_text()
            first = _answers(folder, 1)
            _break_and_mend(folder, parties)
            assert _answers(folder, 3) == first
        finally:
            for party in parties:
                party.process.kill()
                party.process.join(DEADLINE)


def _wait_links(parties: list[Party]) -> None:
    for party in parties:
        wait_until(lambda p=party: links(p) == 2, f"links of {party.role}")


def _wait_lost(parties: list[Party], role: Role) -> None:
    """Wait until both ends of both links of a role were found dead. With a cable that is back
    before that, an old link would be taken for one that is up, and be lost a moment later.
    """
    for party in parties:
        left = 0 if party.role is role else 1
        wait_until(lambda p=party, n=left: links(p) == n, f"lost links of {party.role}", DEADLINE)


def _break_and_mend(folder: Path, parties: list[Party]) -> None:
    (folder / "hold").write_text(f"{Role.EVALUATOR_A} decode")
    caller = _caller(folder, 2, "generate", "-m", MODEL, "-p", PROMPT, "-n", 4)
    wait_until((folder / "reached").exists, "the moment")
    unplug(Role.EVALUATOR_B)
    (folder / "hold").unlink()
    caller.process.join(DEADLINE)
    assert caller.process.exitcode == 1, caller.errors.read_text()
    assert any("evaluator-b" in line for line in caller.lines), caller.lines
    _wait_lost(parties, Role.EVALUATOR_B)
    unplug(Role.EVALUATOR_B, again=True)
    _wait_links(parties)
