"""One cell of the matrix: a fault at a moment, and what must be true afterwards.

In every cell, within `harness.DEADLINE`:

- the caller ends, with one line that names who failed, and exit code 1 (failed) or 3 (busy);
- every other party of the session logs a warning with the session's id that names who failed;
- no process dies but the one that was killed, and none logs anything unforeseen;
- then the next client gets the right answer, under an id that no session had before;
- no party counts a session any more, the stored model is whole, and nothing half-done is stored.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import anyio

from faults.harness import DEADLINE, MODEL, SECOND, Caller, Cluster, kill, wait_until
from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError
from puma_actors.hosts.caller import remove_model

STOPPED = float(os.environ.get("PUMA_FAULTS_STOPPED", "10"))
"""Seconds for which a process stands still."""
MOMENTS = ("handshake", "upload", "prefill", "decode", "idle")
UPLOADING = ("upload", "commit")
"""Moments of an owner; at the second all parties have the model, and one has not noted so."""


@dataclass(frozen=True)
class Cell:
    """A fault. `where`: a role, a way "CALLER–PARTY", or a sender and receiver "ROLE→ROLE".

    `run` strikes and checks all but the aftermath; None: see `strike`.
    """

    fault: str
    where: str
    moment: str
    quick: bool = False
    run: Callable[["Cell", Cluster], None] | None = None

    @property
    def name(self) -> str:
        """For people and for pytest."""
        return f"{self.fault} {self.where} {self.moment}".replace(" ", "-")


@dataclass
class Result:
    """The outcome of a cell. `problem` is empty if all went well; times in seconds."""

    cell: Cell
    problem: str
    noticed: float = 0.0
    next_answer: float = 0.0
    total: float = 0.0


def run(cell: Cell, cluster: Cluster) -> Result:
    """Run a cell and check the aftermath. The cluster is usable afterwards in any case."""
    started = time.monotonic()
    result = Result(cell, "")
    marks = {role: len(party.events()) for role, party in cluster.parties.items()}
    try:
        (cell.run or strike)(cell, cluster)
        result.noticed = time.monotonic() - started
        aftermath(cell, cluster, marks, result)
    except (AssertionError, TimeoutError) as error:
        result.problem = str(error) or type(error).__name__
        restore(cluster)
    result.total = time.monotonic() - started
    return result


def aftermath(cell: Cell, cluster: Cluster, marks: dict[Role, int], result: Result) -> None:
    """What must be true after every fault."""
    cluster.heal()
    dead = cluster.revive()
    victim = [Role(cell.where)] if cell.fault == "SIGKILL" and cell.where in COMPUTING else []
    assert dead == victim, f"died: {', '.join(dead)}"
    if dead:
        cluster.linked()
    result.next_answer = cluster.ask()
    cluster.at_rest()
    assert cluster.stored(MODEL) == list(COMPUTING), "the stored model is gone"
    wait_until(lambda: cluster.stored(SECOND) == [], "the half upload goes")
    with suppress(ConfigError):  # nothing of it was left
        anyio.run(remove_model, cluster.client, SECOND)  # or the next one would continue it
    _check_logs(cluster, marks)


def _check_logs(cluster: Cluster, marks: dict[Role, int]) -> None:
    for role, party in cluster.parties.items():
        events = party.events()
        for event in events[marks[role] :]:
            assert event["level"] not in ("raw", "error"), f"{role} logged {event}"
        begun = [e["session"] for e in events if e["event"] in ("session begins", "upload begins")]
        assert len(set(begun)) == len(begun), f"{role}: a session's id came twice"


def restore(cluster: Cluster) -> None:
    """After a failed cell: restart every party, so that the next cell starts clean."""
    cluster.heal()
    for party in cluster.parties.values():
        party.process.kill()
        party.process.join(DEADLINE)
    cluster.revive()
    cluster.linked()


# -- a fault in the middle of something ------------------------------------------------------------


def strike(cell: Cell, cluster: Cluster) -> None:
    """Bring a caller to the moment, apply the fault, and check that all notice."""
    marks = {role: len(party.events()) for role, party in cluster.parties.items()}
    caller = begin(cell, cluster)
    struck = time.monotonic()
    harm(cell, cluster, caller)
    cluster.release()
    suspects = _suspects(cell)
    if cell.fault == "SIGKILL" and cell.where in (Role.CLIENT, Role.OWNER):
        caller.process.join(DEADLINE)
    elif harmless(cell):
        _check_success(cell, cluster, caller)
    else:
        check_failure(caller, suspects, stopped=struck if _is_stopped_caller(cell) else None)
    if not harmless(cell) and cell.moment != "commit":  # there the others have ended their session
        _check_parties(cell, cluster, marks, suspects)
    if cell.fault == "SIGSTOP":
        time.sleep(max(0.0, struck + STOPPED - time.monotonic()))
    cluster.heal()
    if _is_stopped_caller(cell):
        check_failure(caller, set())


def begin(cell: Cell, cluster: Cluster) -> Caller:
    """Start a caller that stops at the cell's moment (or the role that sends something wrong)."""
    holder = cell.where.partition("→")[0] if "→" in cell.where else Role.EVALUATOR_A
    cluster.hold(Role.CLIENT if cell.moment == "idle" else holder, cell.moment)
    caller = cluster.upload() if cell.moment in UPLOADING else cluster.generate()
    cluster.wait_reached(caller)
    return caller


def harm(cell: Cell, cluster: Cluster, caller: Caller) -> None:
    """The fault itself."""
    if cell.fault in ("SIGKILL", "SIGSTOP"):
        on_caller = cell.where in (Role.CLIENT, Role.OWNER)
        process = caller.process if on_caller else cluster.parties[Role(cell.where)].process
        kill(process, signal.Signals[cell.fault])
    elif "→" in cell.where:
        order = {"to": cell.where.partition("→")[2], "what": cell.fault}
        (cluster.folder / "wrong").write_text(json.dumps(order))
    else:
        source, _, party = cell.where.partition("–")
        proxy = cluster.ways[source, Role(party)]
        if cell.fault == "reset":
            proxy.cut()
        elif cell.fault == "half-open":
            proxy.half_open = True
        elif cell.fault == "stall":
            proxy.stalled = True
        else:
            proxy.corrupting = True


def harmless(cell: Cell) -> bool:
    """Nothing need fail: an upload uses no links between parties; a client that gets the same
    report twice is none the wiser, and a party ignores what belongs to a step that is over.
    """
    between_parties = "–" in cell.where and not cell.where.startswith("caller")
    late = cell.where == "client→evaluator-a" and cell.moment == "decode"
    repeated = cell.fault == "replayed" and (late or cell.where.endswith("→client"))
    return repeated or (cell.moment in UPLOADING and between_parties)


def _suspects(cell: Cell) -> set[str]:
    """The roles of which a message must name one."""
    named = {part for part in cell.where.replace("→", "–").split("–") if part}
    if "caller" in named:
        named = (named - {"caller"}) | {Role.OWNER if cell.moment in UPLOADING else Role.CLIENT}
    if Role.OWNER in named:
        named |= {Role.OWNER}
    return {str(name) for name in named}


def _is_stopped_caller(cell: Cell) -> bool:
    return cell.fault == "SIGSTOP" and cell.where in (Role.CLIENT, Role.OWNER)


def check_failure(
    caller: Caller,
    suspects: set[str],
    *,
    stopped: float | None = None,
    codes: tuple[int, ...] = (1, 3),
) -> None:
    """The caller ends with one clear line. One that stands still does so when it goes on."""
    if stopped is not None:
        return
    caller.process.join(DEADLINE)
    code, lines = caller.process.exitcode, caller.lines
    assert code is not None, f"the caller hangs: {caller.errors.read_text()[-300:]}"
    assert code in codes, f"the caller's exit code is {code}: {lines}"
    assert len(lines) == 1, f"the caller says {lines}"
    assert lines[0].startswith(("error:", "busy:")), lines[0]
    assert not suspects or any(name in lines[0] for name in suspects), (
        f"the caller does not say who failed: {lines[0]}"
    )


def _check_success(cell: Cell, cluster: Cluster, caller: Caller) -> None:
    caller.process.join(DEADLINE)
    code, lines = caller.process.exitcode, caller.lines
    assert code == 0, f"the caller's exit code is {code}: {lines}"
    if cell.moment in UPLOADING:
        assert cluster.stored(SECOND) == list(COMPUTING), "the upload is not everywhere"
        cluster.heal()
        anyio.run(remove_model, cluster.client, SECOND)


def _check_parties(
    cell: Cell, cluster: Cluster, marks: dict[Role, int], suspects: set[str]
) -> None:
    for role, party in cluster.parties.items():
        if role == cell.where:
            continue

        def told(party=party, start=marks[role]) -> bool:  # type: ignore[no-untyped-def]
            return any(
                event["level"] == "warning"
                and "session" in event
                and any(name in json.dumps(event) for name in suspects)
                for event in party.events(start)
            )

        try:
            wait_until(told, f"{role} logs who failed")
        except AssertionError as error:
            raise AssertionError(f"{error}; it logged {party.events(marks[role])}") from None
