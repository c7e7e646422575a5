"""The driver's end of the pipes to SPU's process."""

import json
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

ROOT = Path(__file__).parents[2]
_LINE = 1 << 20  # bytes of an answer
_LEAVE = 5.0  # seconds to end by itself
LIMIT = 3600.0
"""Seconds for one answer: whole models take minutes."""


class PeerError(Exception):
    """SPU failed, ended or did not answer; the text says why."""


class Peer:
    """SPU's process, started at the first request and again if it has ended.

    Args:
        command: starts it; it sends its versions first.
        log: where it writes everything else.
        limit: seconds for one answer.

    Attributes:
        versions: what it said of itself, once it has started.
    """

    def __init__(self, command: Sequence[str], log: Path, limit: float = LIMIT) -> None:
        self._command, self._log, self._limit = command, log, limit
        self._process: Process | None = None
        self._lines: BufferedByteReceiveStream | None = None
        self.versions: dict[str, str] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self._stop()

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            PeerError: there is none, or it says that the request failed.
        """
        try:
            with anyio.fail_after(self._limit):
                if self._process is None:
                    await self._start()
                answer = await self._exchange(request)
        except TimeoutError:
            await self._stop()
            raise PeerError(f"no answer within {self._limit:g} s") from None
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError) as error:
            raise PeerError(await self._ended()) from error
        except (OSError, ValueError) as error:
            await self._stop()
            raise PeerError(f"{type(error).__name__}: {error}") from error
        if "failed" in answer:
            raise PeerError(str(answer["failed"]))
        return answer

    @contextmanager
    def still(self) -> Iterator[None]:
        """The process stands still meanwhile: it takes no time from what is measured beside it."""
        process = self._process
        try:
            _signal(process, signal.SIGSTOP)
            yield
        finally:
            _signal(process, signal.SIGCONT)

    async def _start(self) -> None:
        self._process = await anyio.open_process(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, cwd=ROOT
        )
        assert self._process.stdout is not None
        self._lines = BufferedByteReceiveStream(self._process.stdout)
        self.versions = await self._receive()

    async def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        await self._process.stdin.send(json.dumps(request).encode() + b"\n")
        return await self._receive()

    async def _receive(self) -> dict[str, Any]:
        assert self._lines is not None
        answer = json.loads(await self._lines.receive_until(b"\n", _LINE))
        if not isinstance(answer, dict):
            raise ValueError(f"SPU's side answered {answer!r}, not an object")
        return answer

    async def _ended(self) -> str:
        """Why it has ended, as far as one can tell."""
        assert self._process is not None
        code = await self._process.wait()
        await self._stop()
        why = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -9 else ""
        return f"SPU's process ended, {why}{hint}; see {self._log}"

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            assert process.stdin is not None
            await process.stdin.aclose()  # its loop ends
            with anyio.move_on_after(_LEAVE):
                await process.wait()
            if process.returncode is None:
                process.kill()
        await process.aclose()


def _signal(process: Process | None, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # it has ended: the next request will tell
        if process is not None and process.returncode is None:
            process.send_signal(number)
