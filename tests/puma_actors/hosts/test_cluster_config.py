"""cluster.toml: its settings, overrides from the environment, and errors in it."""

import re
import tomllib
from pathlib import Path

import pytest
from reference import usual_logs

from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError
from puma_actors.base.identity import PeerIdentity
from puma_actors.hosts.config import Allow, ClusterConfig, ComputeTls, load_config
from puma_actors.hosts.example import EXAMPLE
from puma_actors.transports import TcpTransport, TlsTransport, UnixTransport

PARTIES = """
[parties]
dealer = "tls://d.example:1"
evaluator-a = "unix:///run/a"
evaluator-b = "tls://b.example:3"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    return path


def test_the_example_is_good_and_in_the_documents(tmp_path: Path) -> None:
    documents = Path(__file__).parents[3] / "docs" / "cluster.toml"
    assert documents.read_text() == EXAMPLE
    config = load_config(write(tmp_path, EXAMPLE), environ={})
    assert config.parties[Role.EVALUATOR_B].startswith("tls://evaluator-b")
    assert config.path(config.store) == tmp_path / "store"


def test_the_example_shows_every_key_and_its_default(tmp_path: Path) -> None:
    shown = tomllib.loads(re.sub(r"(?m)^# (?=\w+ = )", "", EXAMPLE))
    config = load_config(write(tmp_path, EXAMPLE), environ={})
    assert shown["timeouts"] == config.timeouts.model_dump()
    assert shown["limits"] == config.limits.model_dump()
    assert set(shown["allow"]) == set(Allow.model_fields)
    assert set(re.findall(r"(?m)^#   (\w+) = ", EXAMPLE)) == set(ComputeTls.model_fields)
    for key in ClusterConfig.model_fields.keys() - {"parties", "folder", "compute_tls", *shown}:
        assert f"{key} = " in EXAMPLE


def test_defaults_and_paths(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, f'certificates = "/etc/puma"{PARTIES}'), environ={})
    assert str(config.path(config.certificates)) == "/etc/puma"
    assert config.path(config.store) == tmp_path / "store"
    assert config.identity(Role.DEALER) == PeerIdentity(Role.DEALER, "dealer")
    assert config.listens(Role.EVALUATOR_A) == "unix:///run/a"
    assert config.limits.sessions == 4
    kinds = [type(config.transport(config.parties[role], role)) for role in COMPUTING]
    assert kinds == [TlsTransport, UnixTransport, TlsTransport]


def test_the_environment_overrides(tmp_path: Path) -> None:
    environ = {
        "PUMA_CLUSTER__NAME": "dora",
        "PUMA_CLUSTER__TIMEOUTS__SILENCE": "5",
        "PUMA_CLUSTER__PARTIES__EVALUATOR_A": "tls://a.example:2",
        "PUMA_CLUSTER__ALLOW__CLIENTS": '["alice", "bob"]',
        "PUMA_CLUSTER__LISTEN": "tls://0.0.0.0:9",
        "PUMA_KERNELS": "numpy",
    }
    config = load_config(write(tmp_path, PARTIES), environ=environ)
    assert config.identity(Role.DEALER).name == "dora"
    assert config.timeouts.silence == 5
    assert config.parties[Role.EVALUATOR_A] == "tls://a.example:2"
    assert config.allow.clients == ["alice", "bob"]
    assert config.listens(Role.EVALUATOR_A) == "tls://0.0.0.0:9"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("parties = 3", "parties = 3: input should be"),
        ("", "parties is missing"),
        ('[parties]\ndealer = "tls://x:1"', r"parties\.evaluator-a is missing"),
        (f"sessions = 3{PARTIES}", "unknown key sessions"),
        (f'folder = "x"{PARTIES}', "unknown key folder"),
        (f"{PARTIES}[limits]\nmemroy = 3", r"unknown key limits\.memroy"),
        (f'{PARTIES}[limits]\nsessions = "3"', r"limits\.sessions = '3'"),
        (f"{PARTIES}[limits]\nsessions = 0", r"limits\.sessions = 0: input should be"),
        (f"{PARTIES}[timeouts]\nsilence = inf", r"timeouts\.silence = inf"),
        (f"{PARTIES}[timeouts]\nsilence = nan", r"timeouts\.silence = nan"),
        (f'{PARTIES}[allow]\nclients = "x"', r"allow\.clients = 'x'"),
        (f'{PARTIES}[allow]\nclients = [""]', r"allow\.clients"),
        (f'{PARTIES}[allow]\nparties = ["king/x"]', r"allow\.parties.*'king' is no party: use"),
        (f'{PARTIES}[allow]\nparties = ["client/x"]', r"allow\.parties.*'client' is no party"),
        (f'{PARTIES}[allow]\nparties = ["/x"]', r"allow\.parties.*'' is no party"),
        (f'{PARTIES}[allow]\nparties = ["dealer/"]', r"allow\.parties.*bad name ''"),
        (f'{PARTIES}[allow]\nparties = ["dealer/\\u001b"]', r"allow\.parties.*bad name"),
        (f'{PARTIES}[allow]\nparties = ["{"x" * 65}"]', r"allow\.parties.*bad name"),
        (PARTIES.replace("tls://d", "http://d"), r"parties\.dealer = 'http://d.example:1': use"),
        (PARTIES.replace("example:1", "example:1?silence=1"), "nothing behind it"),
        (PARTIES.replace("tls://d", "tcp://d"), "insecure_no_tls = true"),
        (f'listen = "tcp://x:1"{PARTIES}', "listen = 'tcp://x:1' would send everything in the"),
        (PARTIES.replace("d.example:1", "b.example:3"), "two parties have one address"),
        ("[parties", "is not TOML"),
    ],
)
def test_errors_name_the_key_and_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=reason) as info:
        load_config(path, environ={})
    assert str(path) in str(info.value)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("PUMA_CLUSTER__TIMEOUTS__SILENCE", "soon", r"timeouts\.silence = 'soon'"),
        ("PUMA_CLUSTER__TIMEOUT__SILENCE", "3", "unknown key timeout"),
        ("PUMA_CLUSTER__NAME__FIRST", "x", "name holds no further keys"),
    ],
)
def test_errors_name_the_variable(tmp_path: Path, variable: str, value: str, reason: str) -> None:
    path = write(tmp_path, f'name = "x"{PARTIES}')
    with pytest.raises(ConfigError, match=f"{variable}.*{reason}"):
        load_config(path, environ={variable: value})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml.*puma party --example"):
        load_config(tmp_path / "none.toml", environ={})


def test_plain_tcp_must_be_asked_for_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, PARTIES.replace("tls://d", "tcp://d"))
    with usual_logs() as logger:
        logger.propagate = True
        config = load_config(path, insecure_no_tls=True, environ={})
    assert "no TLS" in caplog.text
    assert isinstance(config.transport(config.parties[Role.DEALER], Role.CLIENT), TcpTransport)


def test_allow_lists() -> None:
    alice, bob = PeerIdentity(Role.CLIENT, "alice"), PeerIdentity(Role.CLIENT, "bob")
    dealer = PeerIdentity(Role.DEALER, "alice")
    assert Allow().admits(alice)
    assert Allow(clients=["alice"]).admits(alice)
    assert not Allow(clients=["alice"]).admits(bob)
    assert not Allow(clients=[]).admits(alice)
    assert not Allow(clients=["alice"], parties=["dora"]).admits(dealer)
    assert not Allow(owners=["x"]).admits(PeerIdentity(Role.OWNER, "alice"))


def test_a_party_in_one_role_alone() -> None:
    allow = Allow(parties=["evaluator-a/alice", "bob", "dealer/dora/b"])
    for role in COMPUTING:
        assert allow.admits(PeerIdentity(role, "alice")) is (role is Role.EVALUATOR_A)
        assert allow.admits(PeerIdentity(role, "bob"))
        assert allow.admits(PeerIdentity(role, "dora/b")) is (role is Role.DEALER)
        assert not allow.admits(PeerIdentity(role, "evaluator-a/alice"))
    assert Allow(clients=["a/b"]).admits(PeerIdentity(Role.CLIENT, "a/b"))


def test_a_file_that_others_can_change(tmp_path: Path) -> None:
    path = write(tmp_path, PARTIES)
    load_config(path, environ={})
    path.chmod(0o646)
    with pytest.raises(ConfigError, match=r"cluster\.toml can be changed by others.*chmod go-w"):
        load_config(path, environ={})
