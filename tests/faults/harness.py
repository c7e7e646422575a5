"""Three parties on loopback with proxies between all roles, a stored model, and callers."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import transformers
from networks import make_certificates
from ports import free_port
from reference import save_model, save_tokenizer
from waiting import HANG

from faults.proxy import Proxies, Proxy
from faults.roles import start
from protocols.base.shares import COMPUTING, Role
from protocols.errors import PumaError
from puma_actors.api.local import LocalCluster
from puma_actors.api.remote import RemoteCluster
from puma_actors.hosts.caller import call
from puma_actors.hosts.config import ClusterConfig, load_config

SILENCE, HANDSHAKE = 5.0, 15.0
"""Seconds; short, since some faults show only when they have passed, and long enough for processes
that share their cores with others."""
DEADLINE = HANG
"""Generous: times are measured, but noticing a fault must not depend on the machine."""
MODEL, SECOND = "tiny", "second"
IDS = [1, 3, 7]
PROMPT, TOKENS = "I see the cat", 4
CALLERS = "caller"
Event = dict[str, Any]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Poll; AssertionError with `what` when time is up."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)
    return found


@dataclass
class Caller:
    """A `puma generate` or `puma upload` process."""

    process: Any
    out: Path
    errors: Path

    @property
    def lines(self) -> list[str]:
        """Lines of stderr, except progress."""
        starts = ("error:", "busy:", "unexpected", "Traceback", "interrupted")
        return [line for line in self.errors.read_text().splitlines() if line.startswith(starts)]


@dataclass
class Party:
    """A `puma party` process. Its log survives restarts."""

    role: Role
    config: Path
    log: Path
    process: Any = None
    started: int = 0

    def events(self, start: int = 0) -> list[Event]:
        """Events from line `start` on. A line that is not JSON becomes an event "raw"."""
        if not self.log.exists():
            return []
        found: list[Event] = []
        for line in self.log.read_text().splitlines()[start:]:
            try:
                found.append(json.loads(line))
            except ValueError:
                found.append({"event": "raw", "level": "raw", "line": line})
        return found

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.is_alive()


@dataclass
class Cluster:
    """See the module docstring. Use as `with`.

    Args:
        folder: for everything. extra: tables for every cluster.toml.
        relaxed: times for a machine that is kept busy, instead of those for quick detection.
    """

    folder: Path
    extra: str = ""
    relaxed: bool = False
    parties: dict[Role, Party] = field(default_factory=dict)
    ways: dict[tuple[str, Role], Proxy] = field(default_factory=dict)
    ports: dict[Role, int] = field(default_factory=dict)
    sessions: set[str] = field(default_factory=set)
    last: Caller | None = None

    def __enter__(self) -> "Cluster":
        transformers.utils.logging.disable_progress_bar()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.certificates = make_certificates(self.folder / "certs")
        self.model = save_tokenizer(save_model(self.folder / "model", seed=3))
        self.proxies = Proxies()
        self.ports = {role: free_port() for role in COMPUTING}
        for index, role in enumerate(COMPUTING):
            for caller in (CALLERS, *COMPUTING[index + 1 :]):
                self.ways[caller, role] = self.proxies.to(self.ports[role])
        self._calls = 0
        self.client_file = self._write(CALLERS)
        self.client = load_config(self.client_file, environ={})
        for role in COMPUTING:
            self.parties[role] = Party(role, self._write(role), self.folder / f"{role}.log")
            self.start(role)
        self.linked()
        caller = self.caller("upload", self.model, "--name", MODEL)
        caller.process.join(DEADLINE)
        assert caller.process.exitcode == 0, caller.errors.read_text()
        self.wanted = anyio.run(self._wanted)
        return self

    def __exit__(self, *error: object) -> None:
        for party in self.parties.values():
            party.process.kill()
            party.process.join(DEADLINE)
        self.proxies.close()

    async def _wanted(self) -> Any:
        async with LocalCluster.from_pretrained(self.model) as cluster:
            return await cluster.forward(IDS)

    def _write(self, who: str) -> Path:
        """A role's cluster.toml: all other roles are called through a proxy."""
        path = self.folder / f"{who}.toml"
        ports = {
            role: self.ways[who, role].port if (who, role) in self.ways else self.ports[role]
            for role in COMPUTING
        }
        parties = "".join(f'{role} = "tls://127.0.0.1:{port}"\n' for role, port in ports.items())
        silence, handshake, retry = (
            (10.0, 20.0, 10.0) if self.relaxed else (SILENCE, HANDSHAKE, 2.0)
        )
        path.write_text(
            f'certificates = "{self.certificates}"\nstore = "{who}-store"\n[parties]\n{parties}'
            f"[timeouts]\nretry = {retry}\nsilence = {silence}\nhandshake = {handshake}\n"
            f"{self.extra}"
        )
        return path

    # -- processes --------------------------------------------------------------------------------

    def start(self, role: Role) -> None:
        """Start a party, or start it again."""
        party = self.parties[role]
        party.started = len(party.events())
        arguments = ["party", "--role", role, "--config", party.config]
        party.process = start(arguments, self.folder, str(role), party.log, party.log)

    def caller(self, *arguments: Any) -> Caller:
        """Start a command of the owner's or a client's."""
        self._calls += 1
        out, errors = (self.folder / f"call-{self._calls}.{kind}" for kind in ("out", "err"))
        errors.touch()  # it may be killed before it has made it
        role = Role.OWNER if arguments[0] == "upload" else Role.CLIENT
        where = ["--cluster", self.client_file]
        process = start([*arguments, *where], self.folder, str(role), out, errors)
        self.last = Caller(process, out, errors)
        return self.last

    def generate(self) -> Caller:
        """A client that asks for an answer."""
        return self.caller("generate", "-m", MODEL, "-p", PROMPT, "-n", TOKENS, "--json")

    def upload(self) -> Caller:
        """An owner that uploads a second model."""
        return self.caller("upload", self.model, "--name", SECOND, "--json")

    def linked(self) -> None:
        """Wait until every party has its links."""
        for party in self.parties.values():
            wait_until(lambda p=party: links(p) == 2, f"links of {party.role}")

    def continue_all(self) -> None:
        """Resume every stopped process."""
        for party in self.parties.values():
            kill(party.process, signal.SIGCONT)
        if self.last is not None:
            kill(self.last.process, signal.SIGCONT)

    def revive(self) -> list[Role]:
        """Restart parties that have died; return which ones."""
        dead = [role for role, party in self.parties.items() if not party.alive]
        for role in dead:
            self.start(role)
        return dead

    # -- moments ----------------------------------------------------------------------------------

    def hold(self, role: str, moment: str) -> None:
        """Make the role stop at a moment."""
        (self.folder / "reached").unlink(missing_ok=True)
        (self.folder / "hold").write_text(f"{role} {moment}")

    def wait_reached(self, caller: Caller) -> None:
        """Wait until it has stopped there."""

        def reached() -> bool:
            assert caller.process.is_alive(), f"ended early: {caller.errors.read_text()[-500:]}"
            return (self.folder / "reached").exists()

        wait_until(reached, "the moment")

    def release(self) -> None:
        """Let it continue."""
        (self.folder / "hold").unlink(missing_ok=True)

    def heal(self) -> None:
        """Undo what can be undone."""
        self.release()
        for name in ("wrong", "full"):
            (self.folder / name).unlink(missing_ok=True)
        marks = {role: len(party.events()) for role, party in self.parties.items()}
        up: dict[str, set[str]] = {r: linked_to(p) for r, p in self.parties.items() if p.alive}
        torn: set[tuple[str, str]] = set()
        for (source, role), proxy in self.ways.items():
            if proxy.heal():
                torn |= {(source, role), (role, source)}
            proxy.target = ("127.0.0.1", self.ports[role])
        self.continue_all()
        for one, two in torn:  # or the next client meets a link that is gone
            if one in up and two in up[one]:
                party, mark = self.parties[Role(one)], marks[Role(one)]
                wait_until(
                    lambda p=party, two=two, mark=mark: two in lost_by(p, mark),
                    f"{one} notices that the link to {two} is gone",
                )

    # -- what must be true ------------------------------------------------------------------------

    def ask(self, seconds: float = DEADLINE) -> float:
        """The next client: how long until its answer, which must be right. Parties that are still
        finding each other may say so; anything else is an error.
        """
        started = time.monotonic()
        while True:
            try:
                session = anyio.run(_ask, self.client, self.wanted, seconds)
            except PumaError as error:
                told = "no connection to" in str(error)
                assert told and time.monotonic() < started + seconds, f"next client: {error}"
                time.sleep(0.05)
                continue
            assert session not in self.sessions, "a session's id came twice"
            self.sessions.add(session)
            return time.monotonic() - started

    def at_rest(self) -> None:
        """Check that no party has a session any more."""
        wait_until(lambda: anyio.run(_sessions, self.client) == [0, 0, 0], "sessions end")

    def stored(self, name: str) -> list[Role]:
        """Parties that have a model; their stores must hold nothing half-done."""
        for role in COMPUTING:
            store = self.folder / f"{role}-store"
            wait_until(lambda s=store: not list(s.glob(".[dg]*-*")), f"{role} tidies up")
        return [r for r in COMPUTING if (self.folder / f"{r}-store" / name).is_dir()]


def lost_by(party: Party, mark: int) -> set[str]:
    """The peers whose links were lost after so many events of the log."""
    return {event["peer"] for event in party.events(mark) if event["event"] == "link lost"}


def links(party: Party) -> int:
    """How many links are up, by the log."""
    assert party.alive, f"{party.role} died: {party.log.read_text()[-500:]}"
    return len(linked_to(party))


def linked_to(party: Party) -> set[str]:
    """The peers whose links are up, by the log."""
    up: dict[str, bool] = {}
    for event in party.events(party.started):
        if event["event"] in ("link up", "link lost"):
            up[event["peer"]] = event["event"] == "link up"
    return {peer for peer, is_up in up.items() if is_up}


async def _ask(config: ClusterConfig, wanted: Any, seconds: float) -> str:
    with anyio.fail_after(seconds):
        async with await RemoteCluster.open(config, MODEL) as remote:
            logits = await remote.forward(IDS)
    assert np.abs(logits - wanted).max() < 0.05, "the next client got a wrong answer"
    return remote.session


async def _sessions(config: ClusterConfig) -> list[int]:
    found = []
    for role in COMPUTING:
        visit = await call(config, Role.CLIENT, role, "list")
        found.append(visit.answer.sessions)
        await visit.channel.aclose()
    return found


def kill(process: Any, number: signal.Signals) -> None:
    """Send a signal to a process, unless it is gone."""
    if process.is_alive():
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
