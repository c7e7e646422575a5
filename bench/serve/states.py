"""What a process holds: memory, threads, files and tasks. Linux alone tells all of it."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class State:
    """Of one process.

    Attributes:
        memory: its proportional share in bytes (PSS): what it shares counts in parts.
        threads, files: how many it has; files are descriptors, sockets among them.
        tasks: of its event loop.
    """

    memory: int
    threads: int
    files: int
    tasks: int = 0

    @classmethod
    def of(cls, pid: int, tasks: int = 0) -> "State":
        """Raises OSError: there is no such process, or the system does not tell."""
        folder = Path(f"/proc/{pid}")
        memory = _number("Pss", (folder / "smaps_rollup").read_text()) * 1024
        threads = _number("Threads", (folder / "status").read_text())
        return cls(memory, threads, len([*(folder / "fd").iterdir()]), tasks)

    def __str__(self) -> str:
        return (
            f"{self.memory / 1e6:.0f} MB, {self.tasks} tasks, {self.threads} threads, "
            f"{self.files} files"
        )


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used so far, in steps of a hundredth of a second.

    Raises OSError: there is no such process.
    """
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


States = Mapping[str, State]
"""By name of the process."""


def _number(name: str, text: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0
