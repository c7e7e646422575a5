"""Numbers and names in SECURITY.md match the program."""

import inspect
import re
from pathlib import Path

import pytest

from protocols.base import prf
from protocols.kernels.tree import SEED_BITS
from puma_actors import cli
from puma_actors.base import certs
from puma_actors.cli.commands.generate_options import generate
from puma_actors.cli.spread import spread
from puma_actors.hosts import config, server, visits
from puma_actors.hosts import peer_links as links
from puma_actors.hosts.config import Allow, ClusterConfig, Limits
from puma_actors.session import handshake as session
from puma_actors.session.mailbox import Flow
from puma_actors.transports.stream import StreamOptions

ROOT = Path(__file__).parents[2]
TEXT = " ".join((ROOT / "SECURITY.md").read_text("utf-8").split())


@pytest.mark.parametrize(
    "said",
    [
        f"the last {server._REMEMBERED:,}",
        f"frames above {config._STRANGER.frame >> 10} KiB from a caller that was not admitted",
        f"above {StreamOptions().limits.frame >> 20} MiB afterwards",
        f"up to {Flow().early >> 20} MiB of online and as much of dealt",
        f"(or one of {Flow().message >> 30} GiB) for each of up to {Flow().inferences} inferences",
        f"a client or an owner up to {Flow().guest >> 20} MiB of each",
        f"pair secrets, {session.SECRET_BYTES} bytes",
        f"AES-{8 * prf.KEY_BYTES}-CTR from counter 0",
        f"more than {visits._MOST_PINGS} pings at a time, more than {links._MEASURED} measurements "
        f"(of {2 * links._PROBE_BYTES >> 20} MiB to the two other parties) a minute",
        f"less than {certs.SOON_DAYS} days left",
        f"on seeds of {64 + int(SEED_BITS).bit_count()} bits",
    ],
)
def test_numbers(said: str) -> None:
    assert said in TEXT


def test_names() -> None:
    keys = {*ClusterConfig.model_fields, *Limits.model_fields, "allow.parties"}
    for name in ("allow", "limits", "insecure_no_tls"):
        assert name in keys
        assert name in TEXT
    assert set(Allow.model_fields) == {"clients", "owners", "parties"}
    assert Flow().early == Flow().window
    assert cli.main
    for command in set(re.findall(r"`(puma [a-z]+(?: [a-z]+)?)`", TEXT)):
        words = command.split()[1:]
        assert words[0] in ("certs", "doctor", "generate", "models", "ping", "serve", "upload"), (
            command
        )


def test_options() -> None:
    """Options named as remedies exist where a client needs them."""
    parameters = inspect.signature(spread(generate)).parameters
    assert {"raw", "tokenizer", "cluster", "max_new_tokens"} <= set(parameters)
    for option in ("--tokenizer FOLDER", "`--raw`", "`-n 1`"):
        assert option in TEXT


def test_the_readme_leads_to_it() -> None:
    assert "[SECURITY.md](SECURITY.md)" in (ROOT / "README.md").read_text("utf-8")
