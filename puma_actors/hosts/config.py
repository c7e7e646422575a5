"""cluster.toml: who the parties are, and how this machine takes part.

    config = load_config(Path("cluster.toml"))         ConfigError names the key and the file
    config.parties[Role.DEALER]                        the dealer's address
    config.transport(address, role)                    with this machine's certificate for the role
    config.identity(role)                              the name under which it takes part
    config.behind(channel, sender=..., receiver=...)   as slow as `network` says

`puma_actors.hosts.example` has a commented file. Every key can also be set in the environment:
`PUMA_CLUSTER__`, then the path to the key in capitals, joined by two underscores, with `_` for `-`:
`PUMA_CLUSTER__TIMEOUTS__SILENCE=5`. Values are TOML; anything else is taken as text.
"""

import os
import tomllib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationError

from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError
from puma_actors.base.identity import NAME_CHARS, PeerIdentity
from puma_actors.base.keyfiles import check_guarded
from puma_actors.base.logs import log
from puma_actors.base.strict import Fault, Strict, config_error, first_fault, read_toml
from puma_actors.hosts.stores.incoming import MOST_BYTES
from puma_actors.roles.messages import MAX_BATCH
from puma_actors.transports import Channel, TcpTransport, TlsTransport, Transport, UnixTransport
from puma_actors.transports.delay.channel import delay
from puma_actors.transports.delay.network import Network, parse_network
from puma_actors.transports.frames import Limits as FrameLimits
from puma_actors.transports.stream import StreamOptions
from puma_actors.transports.tls import Credentials

PREFIX = "PUMA_CLUSTER__"
_SCHEMES = ("tls", "unix", "tcp")
_EXAMPLE = "`puma party --example` shows what there is"
_STRANGER = FrameLimits(header=16 << 10, buffers=16, frame=16 << 10, string=4 << 10, items=1 << 8)
"""Limits for a caller's first frames, before it is known who it is."""

Seconds = Annotated[float, Field(ge=0.1, le=86400.0)]
Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS)]


class Parties(Strict):
    """The addresses of the computing parties."""

    dealer: str
    evaluator_a: str = Field(alias="evaluator-a")
    evaluator_b: str = Field(alias="evaluator-b")

    def __getitem__(self, role: Role) -> str:
        addresses = (self.dealer, self.evaluator_a, self.evaluator_b)
        return addresses[COMPUTING.index(role)]


class Timeouts(Strict):
    """Seconds; see `puma_actors.hosts.example`."""

    handshake: Seconds = 10.0
    silence: Seconds = 10.0
    retry: Annotated[float, Field(ge=0.0, le=86400.0)] = 30.0
    opening: Seconds = 300.0
    idle: Seconds = 600.0
    grace: Annotated[float, Field(ge=0.0, le=86400.0)] = 30.0


class Limits(Strict):
    """The most that one party provides: sessions at once, bytes of memory, tokens at a time, bytes
    on disk of uploads that were cut and of prepared units; and requests that take a step together.
    """

    sessions: int = Field(default=4, ge=1, le=1024)
    memory: int = Field(default=8_000_000_000, ge=1 << 20)
    inference_tokens: int = Field(default=2048, ge=1, le=1 << 20)
    unfinished: int = Field(default=MOST_BYTES, ge=0)
    prepared: int = Field(default=50_000_000_000, ge=0)
    max_batch: int = Field(default=8, ge=1, le=MAX_BATCH)


def _party(entry: str) -> str:
    """An entry of `allow.parties`: a name, or a computing party's role, "/" and a name."""
    role, slash, name = entry.partition("/")
    if slash and role not in COMPUTING:
        raise ValueError(
            f"{role[:NAME_CHARS]!r} is no party: use a name, or one of "
            f"{', '.join(COMPUTING)}, '/' and a name"
        )
    try:
        PeerIdentity(Role.DEALER, name if slash else entry)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return entry


class Allow(Strict):
    """Names in certificates that are admitted; None admits every name. An entry of `parties` may
    also be "role/name", which admits the name in this role only.
    """

    clients: list[Name] | None = None
    owners: list[Name] | None = None
    parties: list[Annotated[str, AfterValidator(_party)]] | None = None

    def admits(self, identity: PeerIdentity) -> bool:
        """Whether the holder of an identity may take part."""
        lists = {Role.CLIENT: self.clients, Role.OWNER: self.owners}
        names = lists.get(identity.role, self.parties)
        if names is None:
            return True
        if identity.role not in COMPUTING:
            return identity.name in names
        plain = "/" not in identity.name and identity.name in names
        return plain or f"{identity.role}/{identity.name}" in names


class ComputeTls(Strict):
    """Files for the connections to this party's own Dask scheduler and workers, which trust every
    certificate of the authority.
    """

    authority: str
    certificate: str
    key: str


class ClusterConfig(Strict):
    """One machine's view of a cluster. `folder` is the folder of the file."""

    parties: Parties
    name: str = Field(default="", max_length=NAME_CHARS)
    certificates: str = "certs"
    store: str = "store"
    listen: str = ""
    network: str = ""
    insecure_no_tls: bool = False
    compute: str = ""
    compute_tls: ComputeTls | None = None
    insecure_compute_no_tls: bool = False
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    allow: Allow = Allow()
    folder: Path = Field(default=Path(), exclude=True)

    def identity(self, role: Role) -> PeerIdentity:
        """The identity under which this machine takes part in a role."""
        return PeerIdentity(role, self.name or str(role))

    def path(self, name: str) -> Path:
        """Resolve a path from the file, which may be relative to the file's folder."""
        return self.folder / Path(name).expanduser()

    def listens(self, role: Role) -> str:
        """The address at which a party listens."""
        return self.listen or self.parties[role]

    @cached_property
    def between(self) -> Network | None:
        """The network emulated between this machine and the others, if any.

        Raises:
            ConfigError: `network` is not valid.
        """
        if self.network.lower().endswith(".toml"):
            return parse_network(self.path(self.network))
        return parse_network(self.network or None)

    def behind(self, channel: Channel, *, sender: Role, receiver: Role) -> Channel:
        """This machine's end of a connection, with incoming frames delayed as `network` says."""
        if self.between is None:
            return channel
        return delay(channel, self.between, sender=sender, receiver=receiver)

    def transport(self, address: str, role: Role) -> Transport:
        """The transport of an address, with this machine's certificate for a role."""
        options = StreamOptions(
            silence=self.timeouts.silence, timeout=self.timeouts.handshake, stranger=_STRANGER
        )
        scheme = urlsplit(address).scheme
        if scheme == "tls":
            identity = self.identity(role)
            credentials = Credentials(self.path(self.certificates), role, identity.name)
            return TlsTransport(credentials, options)
        if scheme == "unix":
            return UnixTransport(options)
        return TcpTransport(options, insecure_no_tls=self.insecure_no_tls)


def load_config(
    path: Path,
    *,
    insecure_no_tls: bool = False,
    listen: str = "",
    network: str | None = None,
    compute: str = "",
    environ: Mapping[str, str] | None = None,
) -> ClusterConfig:
    """Read a cluster.toml.

    Args:
        insecure_no_tls, listen, network, compute: override the file; the path of a network file is
            relative to the current folder.
        environ: variables that override the file; default: the process's environment.

    Raises:
        ConfigError: the file cannot be read, or a key or value is unusable; the text names the key
            and the file (or variable).
    """
    data = read_toml(path, remedy="`puma party --example` prints one to start from")
    check_guarded(path)
    set_here = _override(data, os.environ if environ is None else environ)
    if "folder" in data:  # a field of the model, but not a key to set
        raise ConfigError(f"{path}: unknown key folder: {_EXAMPLE}")
    if insecure_no_tls:
        data["insecure_no_tls"] = True
    if listen:
        data["listen"] = listen
    if compute:
        data["compute"] = compute
    if network is not None:
        is_file = network.lower().endswith(".toml")
        data["network"] = str(Path(network).absolute()) if is_file else network
    try:
        config = ClusterConfig.model_validate({**data, "folder": path.parent})
    except ValidationError as error:
        fault = first_fault(error)
        raise config_error(fault, _origin(fault, set_here) or str(path), _EXAMPLE) from None
    _check_addresses(config, path)
    if config.between is not None:
        log.info("modelled network", network=config.between.describe())
    return config


def _override(data: dict[str, Any], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the environment's values into `data`. Returns the variables by the keys they set."""
    found = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        keys = variable.removeprefix(PREFIX).lower().split("__")
        if keys[0] == "parties":
            keys[1:] = [key.replace("_", "-") for key in keys[1:]]
        table = data
        for key in keys[:-1]:
            inner = table.setdefault(key, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{variable}: {key} holds no further keys")
            table = inner
        table[keys[-1]] = _value(environ[variable])
        found[".".join(keys)] = variable
    return found


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _origin(fault: Fault, variables: Mapping[str, str]) -> str:
    """The variable that set the faulty value; empty if it is in the file."""
    for key, variable in reversed(list(variables.items())):
        if f"{fault.place}.".startswith(f"{key}.") or f"{key}.".startswith(f"{fault.place}."):
            return variable
    return ""


def _check_addresses(config: ClusterConfig, path: Path) -> None:
    given = {f"parties.{role}": config.parties[role] for role in COMPUTING}
    if config.listen:
        given["listen"] = config.listen
    for key, address in given.items():
        url = urlsplit(address)
        if url.scheme not in _SCHEMES or url.query:
            raise ConfigError(
                f"{path}: {key} = {address!r}: use tls://HOST:PORT or unix:///PATH, with nothing "
                "behind it"
            )
        if url.scheme == "tcp" and not config.insecure_no_tls:
            raise ConfigError(
                f"{path}: {key} = {address!r} would send everything in the clear: use tls://, or "
                "set insecure_no_tls = true (or --insecure-no-tls) if the network protects itself"
            )
        if url.scheme == "tcp":
            log.warning("no TLS: anybody on the way can read and change everything", key=key)
    if len({config.parties[role] for role in COMPUTING}) < len(COMPUTING):
        raise ConfigError(f"{path}: two parties have one address: give each its own")
