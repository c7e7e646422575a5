"""`puma prepare` and `--prepared`: what they refuse before any party is called."""

from pathlib import Path

import pytest
from hosts import addresses_for, write_config

from protocols.errors import ConfigError
from puma_actors.api.remote import PrepareOptions
from puma_actors.cli.app import app


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "needs --model NAME and --tokens-in N"),
        (("-m", "tiny"), "needs --model NAME and --tokens-in N"),
        (("-m", "tiny", "--tokens-in", "3", "--count", "10001"), "count = 10001: use a whole"),
        (("-m", "tiny", "--tokens-in", str(1 << 21)), "tokens_in = 2097152: use a whole number"),
    ],
)
def test_unusable_options(tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    config = write_config(tmp_path / "c.toml", addresses_for("unix", tmp_path), tmp_path)
    with pytest.raises(ConfigError, match=says):
        app(["prepare", "--cluster", str(config), *given], standalone_mode=False)


def test_only_remote_parties_prepare() -> None:
    with pytest.raises(ConfigError, match="--prepared require needs --cluster: remote parties"):
        app(["generate", "-p", "text", "--prepared", "require"], standalone_mode=False)


@pytest.mark.parametrize("value", [0, -1, True, 1.0])
def test_numbers_in_python(value: int) -> None:
    with pytest.raises(ConfigError, match=f"tokens_in = {value!r}: use a whole number from 1"):
        PrepareOptions(tokens_in=value)
