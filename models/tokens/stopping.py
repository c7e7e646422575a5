"""The text of a growing answer, and detection of stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

from models.tokens.tokenizer import Tokenizer


class StopWatcher:
    """Passes text on up to the first stop string, which may span several pieces.

    Text that could be the start of a stop string is held back. If two would match, the one that
    ends first counts, so the result does not depend on how the text was cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stops = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Take a piece; return the text that is safe to show (always "" after a stop string)."""
        if self.stopped:
            return ""
        self._held += text
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._pending())

    def finish(self) -> str:
        """Return the text held back, once the text has ended without a stop string."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _pending(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        longest = max((len(s) - 1 for s in self._stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-size:]
            if any(s.startswith(tail) for s in self._stops):
                return size
        return 0


class AnswerText:
    """The text of a growing answer, up to the first stop string.

    Args:
        tokenizer: None: there is no text.
        stop: the stop strings.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str]) -> None:
        self._stream = None if tokenizer is None else tokenizer.stream()
        self._watcher = StopWatcher(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._watcher.stopped

    def push(self, token: int) -> str:
        """Take one id; return the text that can no longer change (may be empty)."""
        return "" if self._stream is None else self._watcher.push(self._stream.push(token))

    def finish(self) -> str:
        """Return the text held back."""
        if self._stream is None:
            return ""
        return self._watcher.push(self._stream.finish()) + self._watcher.finish()
