"""Whether this machine can take part: processor, kernels, memory, certificates, store, ports.

    for check in examine(config, role): check.name, check.state, check.text

`state` is "ok", "warning" (it works, with a drawback) or "problem" (it would stop a run). Nothing
is changed. The only call is to this machine's own address, to learn whether this party listens
there.
"""

import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import anyio

from protocols.base.shares import COMPUTING, Role
from protocols.errors import ConfigError, PumaError
from protocols.kernels import cached, place, simd
from protocols.kernels.aes import aesni
from protocols.kernels.jit import MODE, kernels
from protocols.kernels.places import ASKED
from puma_actors.base.available import available_memory
from puma_actors.base.certs import SOON_DAYS, expiring, load_context, stem
from puma_actors.base.compute import available_cores
from puma_actors.hosts.caller import call
from puma_actors.hosts.config import ClusterConfig
from puma_actors.hosts.stores.store import ModelStore
from puma_actors.hosts.workers.cluster import count_workers

State = Literal["ok", "warning", "problem"]
_GB = 1e9
_ANSWER = 5.0
"""Seconds for a party at this machine's own address to identify itself."""


@dataclass(frozen=True, slots=True)
class Check:
    """One finding."""

    name: str
    state: State
    text: str


def examine(
    config: ClusterConfig | None = None, role: Role | None = None, *, quick: bool = False
) -> list[Check]:
    """Run all checks; network checks need a configuration, and some need a role.

    Args:
        quick: do not verify checksums of stored models, which reads all of them.
    """
    steps: list[Callable[[], Iterator[Check]]] = [_processor, _kernels, lambda: _memory(config)]
    if config is not None:
        steps.append(lambda: _certificates(config, role))
        steps.append(lambda: _addresses(config, role))
        if role in COMPUTING:
            steps.append(lambda: _workers(config, role))
            steps.append(lambda: _store(config))
            steps.append(lambda: _models(config, role, quick))
    return [check for step in steps for check in step()]


def _processor() -> Iterator[Check]:
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    good = sys.byteorder == "little" and sys.version_info >= (3, 11)
    text = system if good else f"{system}: a little-endian machine with Python 3.11 is needed"
    yield Check("system", "ok" if good else "problem", text)
    cores = available_cores()
    few = cores < 2
    yield Check("cores", "warning" if few else "ok", f"{cores}" + (", slow below 2" if few else ""))


def _kernels() -> Iterator[Check]:
    if MODE == "numpy":
        yield Check("kernels", "warning", "PUMA_KERNELS=numpy: slow, meant for tests")
        return
    bits = 8 * simd.vector_bytes()
    yield Check("vectors", "ok" if bits == 512 else "warning", f"{bits} bits (512 is fastest)")
    aes = aesni.available()
    yield Check("AES", "ok" if aes else "warning", "in hardware" if aes else "in software: slow")
    yield _compiled()


def _compiled() -> Check:
    name = "compiled kernels"
    try:
        where, made = place(), cached()
    except ConfigError as error:
        return Check(name, "problem", str(error))
    if where.folder is None:
        text = (
            "cannot be kept: neither the installation nor a cache folder of the user's can be "
            f"written to, and every start compiles them (about 20 s): set {ASKED} to a folder"
        )
        return Check(name, "warning", text)
    if made:
        return Check(name, "ok", f"{made} of about {len(kernels()) or made} in {where.folder}")
    text = f"none in {where.folder}: the first start compiles them, which takes about 20 s"
    return Check(name, "warning", text)


def _memory(config: ClusterConfig | None) -> Iterator[Check]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), available_memory()
    text = f"{free / _GB:.1f} of {total / _GB:.1f} GB available"
    if config is None or free >= config.limits.memory:
        yield Check("memory", "ok", text)
        return
    wanted = config.limits.memory
    text += f", limits.memory is {wanted / _GB:.1f} GB: lower it or free some"
    yield Check("memory", "problem" if wanted > total else "warning", text)


def _certificates(config: ClusterConfig, role: Role | None) -> Iterator[Check]:
    if not any(urlsplit(config.parties[peer]).scheme == "tls" for peer in COMPUTING):
        yield Check("certificates", "warning", "no address is tls://, so none are used")
        return
    folder = config.path(config.certificates)
    identities = [config.identity(role)] if role else [config.identity(r) for r in COMPUTING]
    identities = [i for i in identities if role or (folder / f"{stem(i)}.pem").exists()]
    if not identities:
        yield Check("certificates", "warning", f"no party's in {folder}; give --role")
    for identity in identities:
        path = folder / f"{stem(identity)}.pem"
        try:
            load_context(folder, identity, server=identity.role in COMPUTING)
            left = min(each.days_left for each in expiring(folder, identity))
        except ConfigError as error:
            yield Check(f"certificate of {identity}", "problem", str(error))
        else:
            text = f"{path}, good for {left:.0f} days"
            state: State = "ok"
            if left < SOON_DAYS:
                state, text = "warning", f"{text}: renew it, see `puma certs renew --help`"
            yield Check(f"certificate of {identity}", state, text)


def _addresses(config: ClusterConfig, role: Role | None) -> Iterator[Check]:
    for peer in COMPUTING:
        address = config.listens(peer) if peer is role else config.parties[peer]
        name = f"address of {peer}"
        url = urlsplit(address)
        if url.scheme == "unix":
            yield _unix(config, peer, Path(url.path), own=peer is role)
            continue
        try:
            found = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            yield Check(name, "problem", f"{address}: the host is unknown ({error})")
            continue
        yield _port(config, peer, found) if peer is role else Check(name, "ok", address)


def _port(config: ClusterConfig, role: Role, found: Sequence[Any]) -> Check:
    address, name = config.listens(role), f"address of {role}"
    family, kind, _, _, where = found[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            if (running := _running(config, role)) is not None:
                return Check(name, "ok", f"{address}, {running}")
            text = (
                f"cannot listen at {address} ({error.strerror}), and no one there answers as "
                "this party: use another port, or stop the program that has it"
            )
            return Check(name, "problem", text)
    return Check(name, "ok", f"{address}, free")


def _running(config: ClusterConfig, role: Role) -> str | None:
    """A description of this party if it already runs there; None otherwise."""

    async def ask() -> str:
        with anyio.fail_after(_ANSWER):
            visit = await call(config, role, role, "ping", retry=0.0)
            await visit.channel.aclose()
        return f"held by {role} {visit.answer.name!r}, which runs ({visit.answer.software})"

    try:
        return anyio.run(ask)
    except (PumaError, TimeoutError):
        return None


def _unix(config: ClusterConfig, role: Role, path: Path, *, own: bool) -> Check:
    name = f"address of {role}"
    if not own:
        return Check(name, "ok" if path.is_socket() else "warning", f"unix://{path}")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        return Check(name, "problem", f"{path.parent} is not a writable folder")
    running = _running(config, role) if path.is_socket() else None
    return Check(name, "ok", f"unix://{path}{f', {running}' if running else ''}")


def _workers(config: ClusterConfig, role: Role) -> Iterator[Check]:
    if not config.compute:
        return
    name = "workers"
    try:
        found = anyio.run(count_workers, config, role)
    except PumaError as error:
        yield Check(name, "problem", str(error))
        return
    state: State = "ok" if found else "warning"
    yield Check(name, state, f"{config.compute}, {found} workers")


def _store(config: ClusterConfig) -> Iterator[Check]:
    folder = config.path(config.store)
    there = folder
    while not there.exists():
        there = there.parent
    try:
        if not os.access(there, os.W_OK | os.X_OK):
            raise ConfigError(f"{there} is not writable: check its permissions")
        if folder.exists() and folder.stat().st_mode & 0o077:
            raise ConfigError(f"{folder} is open to others: run `chmod 700 {folder}`")
    except PumaError as error:
        yield Check("store", "problem", str(error))
        return
    status = os.statvfs(there)
    free = status.f_bavail * status.f_frsize
    state: State = "ok" if free > _GB else "warning"
    yield Check("store", state, f"{folder}, {free / _GB:.1f} GB free on its disk")


def _models(config: ClusterConfig, role: Role, quick: bool) -> Iterator[Check]:
    """Check that every stored model is complete, private, and, unless `quick`, has the right
    checksums. The party may be running.
    """
    store = ModelStore(config.path(config.store), role)
    try:
        names = store.names() if store.folder.exists() else []
    except OSError as error:
        yield Check("models", "problem", f"{store.folder} cannot be read ({error.strerror})")
        return
    for name in names:
        try:
            stored = store.read(name, verify=not quick)
        except PumaError as error:
            yield Check(f"model {name}", "problem", str(error))
            continue
        files = stored.manifest.files
        size = sum(entry.bytes for entry in files.values()) / _GB
        how = "sizes and modes are right (--quick)" if quick else "all checksums are right"
        kind = f"{stored.plan.weights} weights"
        yield Check(f"model {name}", "ok", f"{kind}, {len(files)} files, {size:.2f} GB, {how}")
