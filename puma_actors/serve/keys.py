"""The key that a client of the gateway must show."""

import os
import re
import secrets
from pathlib import Path

from protocols.errors import ConfigError
from puma_actors.base.keyfiles import check_private, reading, write_new

_FORM = re.compile(r"[!-~]{16,200}")


def key_file() -> Path:
    """Where this user's key is: `serve.key` in `$XDG_STATE_HOME/puma`, by default
    `~/.local/state/puma`.
    """
    state = os.environ.get("XDG_STATE_HOME")
    return Path(state or Path.home() / ".local" / "state") / "puma" / "serve.key"


def stored_key(path: Path) -> str:
    """The key in a file, which is made on first use: readable by its owner only.

    Raises:
        ConfigError: others can read the file, it cannot be read or made, or it holds no key.
    """
    with reading(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            write_new(path, f"puma-{secrets.token_urlsafe(32)}\n".encode(), 0o600)
        check_private(path)
        return check_key(path.read_text(encoding="utf-8").strip(), str(path))


def check_key(key: str, source: str) -> str:
    """The key, if it can be one.

    Raises:
        ConfigError: it is too short or too long, or has other characters than printable ASCII.
    """
    if not _FORM.fullmatch(key):
        raise ConfigError(
            f"{source}: a key has 16 to 200 characters, printable ASCII without spaces"
        )
    return key
