"""`unix:///path/to/socket`: actors of one user on one machine.

Only its user can access the socket (mode 0600). A socket file without a listener is replaced; any
other file is left alone.
"""

import asyncio
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import SplitResult, unquote

from protocols.errors import ConfigError
from puma_actors.transports.sockets import StreamTransport
from puma_actors.transports.stream import StreamChannel

_PATH_BYTES = 107  # of sockaddr_un.sun_path, with its final zero


class UnixTransport(StreamTransport):
    """See the module docstring."""

    scheme = "unix"

    async def open_channel(
        self, url: SplitResult, options: dict[str, str], factory: Callable[[], StreamChannel]
    ) -> StreamChannel:
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(factory, str(_path(url)))
        return channel

    def bind(self, url: SplitResult) -> tuple[socket.socket, str]:
        path = _path(url)
        _remove_stale(path)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            bound.bind(str(path))
            path.chmod(0o600)  # no one can connect before `listen`
        except BaseException:
            bound.close()
            raise
        return bound, f"unix://{url.path}"


def _path(url: SplitResult) -> Path:
    path = unquote(url.path)
    if url.netloc or not path.startswith("/") or "\0" in path:
        raise ConfigError(f"bad address {url.geturl()!r}: use unix:///PATH")
    if len(os.fsencode(path)) > _PATH_BYTES:
        raise ConfigError(
            f"the socket's path {path!r} is longer than {_PATH_BYTES} bytes: use a shorter one"
        )
    return Path(path)


def _remove_stale(path: Path) -> None:
    """Remove a socket file without a listener."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return
