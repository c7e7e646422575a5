"""No test may depend on the machine's speed; also tests of the tools for that."""

import ast
import asyncio
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import anyio
import hypothesis
import pytest
from clock import standing
from delayed import DelayedTransport
from waiting import HANG, Stuck, settled, unless_stuck, until

from puma_actors.transports.delay.network import Route
from puma_actors.transports.frames import Frame, Kind
from puma_actors.transports.memory import MemoryTransport

TESTS = Path(__file__).parents[1]
CLOCKS = {"time", "monotonic", "perf_counter", "current_time", "now"}
ALLOWED = {
    ("test_handshake.py", "test_silence_times_out"): "it waits for the end of just this time",
    ("soak.py", "run"): "a load generator's pace",
    ("chaos.py", "lingering"): "a thread that is late on purpose; nothing counts on it",
    ("cell.py", "strike"): "a process stands still for longer than it may, at least",
    ("hooks.py", "at"): "between looks at a file",
    ("proxy.py", "_carry"): "between looks at a flag",
    ("harness.py", "wait_until"): "between looks; its limit is HANG",
    ("harness.py", "ask"): "between attempts; its limit is HANG",
    ("waiting.py", "until_now"): "its limit is HANG",
}
"""Exceptions: where a time is waited for or asserted, and why that is right on any machine."""


def _name(call: ast.expr) -> str:
    return call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")


def _number(node: ast.AST) -> float | None:
    """The value of an expression of numbers."""
    try:
        value = eval(compile(ast.Expression(node), "", "eval"), {"__builtins__": {}})  # type: ignore[arg-type]
    except Exception:
        return None
    return float(value) if isinstance(value, int | float) else None


def _reads_clock(node: ast.AST) -> bool:
    return any(isinstance(n, ast.Call) and _name(n.func) in CLOCKS for n in ast.walk(node))


def _limits(call: ast.Call) -> Iterator[ast.AST]:
    """Arguments of a call that are times to wait."""
    name, arguments = _name(call.func), call.args
    if name in {"fail_after", "move_on_after", "sleep", "settimeout", "Timer"}:
        yield from arguments[:1]
    elif ast.unparse(call.func) == "asyncio.wait_for":
        yield from arguments[1:2]
    elif name in {"wait", "join", "acquire"} and isinstance(call.func, ast.Attribute):
        yield from arguments[:1]
    if name != "timedelta":
        yield from (k.value for k in call.keywords if k.arg in {"timeout", "seconds", "delay"})


def _faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that wait for a time, and lines that say how long something may take."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for limit in _limits(node):
                number = _number(limit)
                waits = _name(node.func) == "sleep" and _name(limit) != "POLL" and number != 0
                if waits or (number is not None and 0 < number < HANG):
                    yield node.lineno, f"{_name(node.func)}({ast.unparse(limit)})"
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for left, operation, right in zip(sides, node.ops, sides[1:], strict=False):
                upper = isinstance(operation, ast.Lt | ast.LtE) and _reads_clock(left)
                if upper or (isinstance(operation, ast.Gt | ast.GtE) and _reads_clock(right)):
                    yield node.lineno, ast.unparse(node)


def _found(source: str) -> Iterator[tuple[str, int, str]]:
    """Faults by the innermost function that contains them."""
    tree = ast.parse(source)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for line, what in _faults(tree):
        around = [f for f in functions if f.lineno <= line <= (f.end_lineno or f.lineno)]
        inner = max(around, key=lambda f: f.lineno, default=None)
        yield inner.name if inner else "", line, what


def test_no_test_waits_for_a_time() -> None:
    wrong, used = [], set()
    for path in sorted(TESTS.rglob("*.py")):
        file = path.name
        for function, line, what in _found(path.read_text("utf-8")):
            if (file, function) in ALLOWED:
                used.add((file, function))
            else:
                wrong.append(f"{file}:{line}: {what}")
    assert not wrong, "wait for an event, see tests/waiting.py: " + "; ".join(wrong)
    assert used == set(ALLOWED)


@pytest.mark.parametrize(
    "line",
    [
        "time.sleep(0.5)",
        "await anyio.sleep(pause)",
        "with anyio.fail_after(10): ...",
        "with move_on_after(2 * 5): ...",
        "await asyncio.wait_for(task, 5)",
        "thread.join(20)",
        "process.wait(timeout=20)",
        "subprocess.run(line, timeout=120)",
        "assert time.monotonic() - began < 0.1",
        "assert 0.1 <= perf_counter() - began <= at_most(0.1)",
        "assert 5 > time.time() - began",
    ],
)
def test_what_is_found(line: str) -> None:
    assert [what for _, _, what in _found(f"async def test():\n    {line}\n")]


@pytest.mark.parametrize(
    "line",
    [
        "await asyncio.sleep(0)",
        "await anyio.sleep(POLL)",
        "with anyio.fail_after(HANG): ...",
        "await event.wait()",
        "subprocess.run(line, timeout=HANG)",
        "assert time.monotonic() - began >= latency",
        "' '.join(words)",
    ],
)
def test_what_is_not(line: str) -> None:
    assert not list(_found(f"async def test():\n    {line}\n"))


def test_a_hang_is_shown_before_it_is_ended() -> None:
    project = tomllib.loads((TESTS.parent / "pyproject.toml").read_text())
    shown = project["tool"]["pytest"]["ini_options"]["faulthandler_timeout"]
    assert 0.5 * HANG < shown < HANG
    assert hypothesis.settings.default.deadline is None


# -- the means -------------------------------------------------------------------------------------


async def test_what_can_still_happen_is_waited_for() -> None:
    gate, steps = threading.Event(), []
    one, two = socket.socketpair()
    for end in (one, two):
        end.setblocking(False)
    loop = asyncio.get_running_loop()

    async def work() -> None:
        await anyio.to_thread.run_sync(gate.wait)
        steps.append("thread")
        await loop.sock_sendall(one, b"x")
        for _ in range(100):
            await asyncio.sleep(0)
        steps.append("turns")

    async def hear() -> None:
        await loop.sock_recv(two, 1)
        steps.append("socket")

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        group.start_soon(hear)
        loop.call_later(0.02, gate.set)
        await settled()
        assert steps == ["thread", "socket", "turns"]
    one.close()
    two.close()


async def test_who_waits_for_what_never_comes_is_stuck() -> None:
    with pytest.raises(Stuck):
        await unless_stuck(asyncio.Event().wait())
    with pytest.raises(KeyError, match="mine"):
        await unless_stuck(_fails())
    assert await unless_stuck(asyncio.sleep(0, "done")) == "done"
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def _fails() -> None:
    await anyio.to_thread.run_sync(int)
    raise KeyError("mine")


async def test_a_clock_that_stands_moves_by_delays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = standing(monkeypatch)
    transport = DelayedTransport(MemoryTransport(), Route(round_trip=10.0))
    async with (
        await transport.listen("memory://standing") as listener,
        await transport.connect("memory://standing") as left,
        await listener.accept() as right,
    ):
        began = clock.now
        for number in range(2):
            await left.send(Frame(Kind.DATA, tag=(number,)))
            await right.receive()
            assert clock.now == began + 5 * (number + 1)
