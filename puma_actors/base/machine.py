"""What this machine is: for reports that are read later, elsewhere."""

import platform
import re
import sys
from pathlib import Path

_INFO = Path("/proc/cpuinfo")


def processor() -> str:
    """The processor's name, as the system gives it."""
    if _INFO.is_file() and (found := re.search(r"model name\s*:\s*(.+)", _INFO.read_text())):
        return found[1].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> int | None:
    """Most bytes that this process had in memory so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
