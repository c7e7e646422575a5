"""Dockerfile, compose.yaml, systemd units and docs/deploy.md fit the program and one another."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import blocks, check, check_mention, in_shell, mentioned
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from protocols.base.shares import COMPUTING, Role
from puma_actors.hosts.config import ClusterConfig, load_config

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text("utf-8")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
PARTIES = {role: COMPOSE["services"][role] for role in map(str, COMPUTING)}
CONFIG = "/etc/puma/cluster.toml"
PORTS = {"dealer": 7101, "evaluator-a": 7102, "evaluator-b": 7103}
GIGABYTE = 1 << 30


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """A unit's settings: each may be given several times."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in (DEPLOY / name).read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(section, {}).setdefault(key, []).append(value)
    return found


PARTY, SERVE = unit("puma-party@.service"), unit("puma-serve.service")


def config(tmp_path: Path, **environ: str) -> ClusterConfig:
    """The example, read as a party reads it."""
    path = tmp_path / "cluster.toml"
    path.write_bytes((DEPLOY / "cluster.toml").read_bytes())
    path.chmod(0o600)
    return load_config(path, environ=environ)


def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the last stage, and their arguments."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    lines = [line.partition(" ") for line in text.splitlines() if line.strip()]
    start = max(at for at, (name, _, _) in enumerate(lines) if name == "FROM")
    return [(name, rest.strip()) for name, _, rest in lines[start:]]


def values(name: str) -> list[str]:
    return [rest for word, rest in dockerfile() if word == name]


# -- commands --------------------------------------------------------------------------------------


def as_run(words: list[str], role: str) -> list[str]:
    """With what the shell, compose and systemd put in."""
    names = {"$$PUMA_ROLE": role, "$PUMA_ROLE": role, "%i": role, "%h": "/home/ada"}
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    return words


def test_commands_of_the_image() -> None:
    (health,) = values("HEALTHCHECK")
    (words,) = in_shell(health.partition("CMD ")[2])
    for role in PARTIES:
        check(as_run(words, role))
    assert words[words.index("--cluster") + 1] == CONFIG
    assert values("ENTRYPOINT") == ['["puma"]']


@pytest.mark.parametrize("role", PARTIES)
def test_commands_of_compose(role: str) -> None:
    service = PARTIES[role]
    words = service["command"]
    check(words)
    assert words == ["party", "--role", role, "--config", CONFIG]
    kind, line = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    (health,) = in_shell(line)
    check(as_run(health, role))
    assert service["environment"]["PUMA_ROLE"] == role
    assert as_run(health, role)[-4:] == ["--role", role, "--to", role]


@pytest.mark.parametrize("settings", [PARTY, SERVE])
def test_commands_of_units(settings: Any) -> None:
    (line,) = settings["Service"]["ExecStart"]
    (words,) = in_shell(line)
    for role in PARTIES:
        check(as_run(words, role))


def test_comments_of_the_files() -> None:
    for name in ("compose.yaml", "puma-party@.service", "puma-serve.service"):
        text = (DEPLOY / name).read_text("utf-8")
        for line in re.findall(r"^#   (docker compose .*)$", text, re.M):
            run_in_container(line)


def run_in_container(line: str) -> None:
    """Check a `docker compose` line; one that runs a command in a container is one of ours."""
    found = re.search(r"run --rm (\S+) (.*)", line)
    if found is None:
        assert line.split()[-1] in COMPOSE["services"], line
        return
    if found[1] in COMPOSE["services"]:
        check(found[2].split())


def test_commands_of_the_page() -> None:
    lines = [words for block in blocks(PAGE) for words in in_shell(block)]
    assert len(lines) >= 7
    for words in lines:
        check(words)
    for block in blocks(PAGE):
        for line in block.splitlines():
            if line.startswith("docker compose"):
                run_in_container(line)
            elif line.startswith("docker run"):
                check(line.partition(" puma-actors:0.2.0 ")[2].split())
    for line in mentioned(PAGE):
        check_mention(line)


@pytest.mark.parametrize("line", ["certs renwe", "party --rol dealer", "ping --two dealer"])
def test_a_wrong_command_is_noticed(line: str) -> None:
    """Negative control."""
    with pytest.raises(ValueError, match=r"no (command|option)"):
        check_mention(line)
    with pytest.raises(Exception, match=r"No such (command|option)"):
        check(line.split())


# -- paths, ports, sizes ---------------------------------------------------------------------------


def port(address: str) -> int:
    return int(address.rpartition(":")[2])


@pytest.mark.parametrize("role", PARTIES)
def test_a_container_has_what_the_configuration_names(role: str, tmp_path: Path) -> None:
    service = PARTIES[role]
    environ = {k: v for k, v in service["environment"].items() if k.startswith("PUMA_CLUSTER__")}
    read = config(tmp_path, **environ)
    address = read.parties[Role(role)]
    assert port(address) == port(read.listens(Role(role))) == PORTS[role]
    assert service["ports"] == [f"{PORTS[role]}:{PORTS[role]}"]
    host = address.removeprefix("tls://").partition(":")[0]
    assert service["networks"]["parties"]["aliases"] == [host]
    mounts = dict(reversed(volume.split(":", 1)) for volume in service["volumes"])
    inside = {target.removesuffix(":ro"): source for target, source in mounts.items()}
    assert inside == {
        CONFIG: "./cluster.toml",
        f"{Path(CONFIG).parent / read.certificates}": f"./certs/{role}",
        read.store: f"{role}-store",
        "/var/cache/puma": f"{role}-kernels",
    }
    written = {target for target in mounts if not target.endswith(":ro")}
    assert written == {read.store, "/var/cache/puma"} == set(yaml.safe_load(values("VOLUME")[0]))
    assert {f"{role}-store", f"{role}-kernels"} <= COMPOSE["volumes"].keys()


def test_the_image_keeps_kernels_on_a_volume() -> None:
    (variables,) = values("ENV")
    assert "PUMA_CACHE_DIR=/var/cache/puma " in f"{variables} "
    assert "PYTHONDONTWRITEBYTECODE=1" in variables


def test_time_to_drain_and_room_for_the_program(tmp_path: Path) -> None:
    read = config(tmp_path)
    for service in PARTIES.values():
        assert float(service["stop_grace_period"].removesuffix("s")) > read.timeouts.grace
        assert service["mem_limit"] == service["memswap_limit"]  # no swap
        room = int(service["mem_limit"].removesuffix("g")) * GIGABYTE
        assert room >= read.limits.memory + 1_900_000_000
        assert service["stop_signal"] == "SIGTERM"
    assert values("STOPSIGNAL") == ["SIGTERM"]
    settings = PARTY["Service"]
    assert float(settings["TimeoutStopSec"][0]) > read.timeouts.grace
    room = int(settings["MemoryMax"][0].removesuffix("G")) * GIGABYTE
    assert room >= read.limits.memory + 1_900_000_000


def test_units_have_what_the_configuration_names(tmp_path: Path) -> None:
    settings = PARTY["Service"]
    environ = dict(each.split("=", 1) for each in settings["Environment"])
    assert environ["PUMA_CACHE_DIR"] == f"/var/cache/{settings['CacheDirectory'][0]}"
    own = {k: v for k, v in environ.items() if k.startswith("PUMA_CLUSTER__")}
    read = config(tmp_path, **own)
    assert read.store == f"/var/lib/{settings['StateDirectory'][0]}"
    assert settings["RestartPreventExitStatus"] == ["2 4"]
    environ = dict(each.split("=", 1) for each in SERVE["Service"]["Environment"])
    (writable,) = SERVE["Service"]["ReadWritePaths"]
    assert writable.split() == [f"{environ['XDG_STATE_HOME']}/puma", environ["PUMA_CACHE_DIR"]]


def test_the_ports_of_the_page() -> None:
    for role, number in PORTS.items():
        name = role.replace("-a", " A").replace("-b", " B")
        assert re.search(rf"^\| {name} \| {number} \|", PAGE, re.M), role


# -- hardening -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*COMPOSE["services"]])
def test_containers_can_do_nothing_else(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["ulimits"]["core"] == 0
    assert service["pids_limit"] <= 256
    assert service["user"] == "10001:10001"
    assert all("noexec" in each for each in service["tmpfs"])
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()
    for volume in service["volumes"]:
        assert volume.endswith(":ro") or not volume.startswith(("/", "."))
        assert "docker.sock" not in volume
    if name in PARTIES:
        assert service["restart"] == "unless-stopped"


def test_the_image_is_small_and_of_no_special_user() -> None:
    assert values("USER") == ["10001:10001"]
    assert not values("ADD")
    (base,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.M)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-[a-z]+", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${PYTHON}"}
    assert [copied for _, copied in dockerfile() if "--from=build" in copied] == values("COPY")
    installs = re.findall(r"bin/pip (.*)", DOCKERFILE)
    assert installs
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)


def test_what_the_image_is_built_from() -> None:
    """Nothing but what the first stage copies reaches the builder, and all of that is there."""
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
        for word in line.split()
    }
    assert sent == copied
    assert all((ROOT / name).exists() for name in sent)
    dropped = rules[len(sent) + 1 :]
    for name in ("models/__pycache__/x.pyc", "puma_actors.egg-info"):
        assert any(fnmatch(part, rule[3:]) for part in Path(name).parts for rule in dropped)


HARDENED = {
    "CapabilityBoundingSet": "",
    "LimitCORE": "0",
    "LockPersonality": "yes",
    "MemorySwapMax": "0",
    "NoNewPrivileges": "yes",
    "PrivateDevices": "yes",
    "PrivateTmp": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHome": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectSystem": "strict",
    "Restart": "on-failure",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictSUIDSGID": "yes",
    "StateDirectoryMode": "0700",
    "SystemCallArchitectures": "native",
    "UMask": "0077",
    "User": "puma",
    # Numba writes machine code into memory and runs it.
    "MemoryDenyWriteExecute": "no",
}
AS_A_USER = {
    "CapabilityBoundingSet", "PrivateDevices", "ProtectControlGroups", "ProtectHome",
    "ProtectKernelModules", "ProtectKernelTunables", "StateDirectoryMode", "User",
}  # fmt: skip
"""What only the system's manager can set."""


def test_units_can_do_nothing_else() -> None:
    for name, value in HARDENED.items():
        assert PARTY["Service"][name] == [value], name
        if name not in AS_A_USER:
            assert SERVE["Service"][name] == [value], name
    assert SERVE["Service"]["PrivateUsers"] == ["yes"]
    for settings in (PARTY, SERVE):
        assert "@system-service" in settings["Service"]["SystemCallFilter"]
        assert int(settings["Service"]["LimitNOFILE"][0]) >= 4096
        assert not {"LoadCredential", "PassEnvironment"} & settings["Service"].keys()


# -- versions --------------------------------------------------------------------------------------


def pins(name: str) -> dict[str, set[str]]:
    text = (ROOT / "requirements" / name).read_text("utf-8").replace("\\\n", " ")
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert "--hash=sha256:" in line
            pin = Requirement(line.partition(" --hash")[0])
            found.setdefault(canonicalize_name(pin.name), set()).add(str(pin.specifier))
    return found


def test_the_image_runs_what_is_tested() -> None:
    """Its versions are those of the development lock, and nothing that a party needs is missing."""
    tested, runtime, image = pins("dev.lock"), pins("runtime.lock"), pins("image.lock")
    for found in (runtime, image):
        assert all(tested[name] == versions for name, versions in found.items())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["serve"]]
    assert {canonicalize_name(Requirement(each).name) for each in needed} <= runtime.keys()
    assert not runtime.keys() & {"torch", "pytest", "setuptools"}


def test_one_version_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for text in (PAGE, DOCKERFILE, (DEPLOY / "compose.yaml").read_text("utf-8")):
        assert set(re.findall(r"puma-actors:(\d[\w.]*)", text)) == {version}
