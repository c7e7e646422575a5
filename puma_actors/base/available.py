"""Memory that is available to this process on this machine."""

import os
from pathlib import Path

_GROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Files with a container's limit, use and details, for both versions of control groups."""


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that can be used without swapping and within a container's limit.

    Args:
        root: folder that contains `proc` and `sys`.
    """
    found = [_machine(root), *(_group(root, *names) for names in _GROUPS)]
    known = [size for size in found if size is not None]
    return max(0, min(known)) if known else _physical()


def _machine(root: Path) -> int | None:
    return _entry(root / "proc/meminfo", "MemAvailable:", 1024)


def _entry(path: Path, name: str, unit: int) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.split()[:1] == [name]:
                return unit * int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return None


def _group(root: Path, limit: str, use: str, details: str) -> int | None:
    """Bytes left below a container's limit; pages of files count as free."""
    try:
        most, used = (int((root / name).read_text()) for name in (limit, use))
    except (OSError, ValueError):  # there is none, or it is "max"
        return None
    return most - used + (_entry(root / details, "inactive_file", 1) or 0)


def _physical() -> int:
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf(name)
