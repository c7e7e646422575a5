"""The memory that this process uses at most, page cache not counted."""

import re
import resource
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.1  # seconds


class Peak:
    """Within `with Peak() as peak`, a thread looks at the memory ten times a second.

    Attributes:
        bytes: the most that it saw. Where the system does not tell what is page cache, the largest
            resident memory since the process began.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, anonymous_bytes())
            if self._ended.wait(_INTERVAL):
                return


def anonymous_bytes() -> int:
    """Memory of this process that is not from files, in bytes; see `Peak`."""
    return _status("RssAnon") or _largest()


def peak_bytes() -> int:
    """Largest resident memory of this process, page cache counted, since it began; where the system
    can forget that figure (`bench.model.reset_peak`), since it did.
    """
    return _status("VmHWM") or _largest()


def _status(name: str) -> int:
    """A line of this process's status file, in bytes; 0 if there is none."""
    if not _STATUS.is_file():
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _largest() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
