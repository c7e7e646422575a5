"""A party's shelf in processes that are killed, one a line of code: `crashes.py FOLDER STRIDE`.

Each works in a folder of its own, FOLDER/N: it publishes two units, leaves a third unfinished, and
uses two. It is killed when N lines of the package have run. Then another process looks at what is
left. What they do goes to FOLDER/N/log.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from units import ORIGIN, SHAPE, fill, fresh_keys, label_of

from protocols.base.shares import Role
from puma_actors.prepare import shelf as module
from puma_actors.prepare.shelf import Shelf

PACKAGE = str(Path(module.__file__).parent)
MESSAGES = {(0, Role.DEALER, (1, 1)): b"a word", (1, Role.DEALER, (1, 1)): b"another"}


def note(folder: Path, *words: str) -> None:
    """Add a line to the log: what was written stays, however the process ends."""
    handle = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, (" ".join(words) + "\n").encode())
    os.close(handle)


def killed_after(lines: int) -> Callable[[FrameType, str, Any], Any]:
    """A trace function."""
    left = lines

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def opened(folder: Path) -> Shelf:
    shelf = Shelf(
        folder / "units", Role.EVALUATOR_A, 1 << 30, lambda unit: note(folder, "claimed", unit)
    )
    shelf.open({ORIGIN.upload})
    return shelf


def use(shelf: Shelf, folder: Path) -> bool:
    """Use a unit, if there is one."""
    unit = shelf.find(ORIGIN, SHAPE)
    if unit is None:
        return False
    note(folder, "claiming", unit)
    file = shelf.claim(unit, ORIGIN, SHAPE)
    note(folder, "used", unit)
    for step in range(2):
        for place in file.index(step).values():
            file.read(place)
    file.close()
    return True


def party(folder: Path) -> None:
    """What is interrupted."""
    shelf = opened(folder)
    for number in range(2):
        writer = shelf.begin(label_of(f"{number:032x}"), fresh_keys(), 10_000)
        fill(writer, MESSAGES)
        shelf.publish(writer)
        shelf.abandon(writer, 10_000)
        note(folder, "published", writer.label.unit)
    shelf.begin(label_of("f" * 32), fresh_keys(), 10_000).write(b"not whole")
    assert use(shelf, folder)
    assert use(shelf, folder)


def restarted(folder: Path) -> None:
    """The next process."""
    note(folder, "restarted")
    shelf = opened(folder)
    while use(shelf, folder):
        pass
    left = list((folder / "units").iterdir()) if (folder / "units").exists() else []
    note(folder, "clean" if not left else "dirty")


def in_child(work: Callable[[], None]) -> int:
    """Run in a process of its own; its exit status."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path, stride: int) -> None:
    lines = 0
    while True:
        place = folder / f"{lines:05}"
        place.mkdir()

        def cut(place: Path = place, lines: int = lines) -> None:
            sys.settrace(killed_after(lines))
            party(place)

        ended = in_child(cut)
        assert ended in (0, -signal.SIGKILL), ended
        assert in_child(lambda place=place: restarted(place)) == 0  # type: ignore[misc]
        if ended == 0:
            return
        lines += stride


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
