"""Which Dask cluster a party may use, checked before anything is imported or connected.

    reach = reach_of(config, Role.DEALER)        None: the party computes by itself

A Dask cluster believes whoever has a certificate of its authority, and runs the code that it sends.
So the cluster is one party's own, and so is the authority.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from protocols.base.shares import Role
from protocols.errors import ConfigError
from puma_actors.base.certs import AUTHORITY, describe
from puma_actors.base.keyfiles import check_guarded, check_private, reading
from puma_actors.base.logs import log
from puma_actors.hosts.config import ClusterConfig, ComputeTls

PLAIN = "insecure_compute_no_tls"
"""The setting that allows a scheduler without TLS."""
_KEYS = "authority, certificate and key, from a `puma certs init` of its own"


@dataclass(frozen=True, slots=True)
class Reach:
    """How a party reaches its scheduler.

    Attributes:
        party: the role and name under which it takes the cluster for itself.
        tls: paths of the authority, the certificate and the key; None without TLS.
        silence: seconds without an answer after which a machine is considered dead.
    """

    address: str
    role: Role
    party: str
    tls: tuple[Path, Path, Path] | None
    silence: float


def reach_of(config: ClusterConfig, role: Role) -> Reach | None:
    """What `compute` and `compute_tls` say; None if the party computes by itself.

    Raises:
        ConfigError: the address is unusable or not encrypted; a certificate is missing, expired,
            unsafe, or of the authority that the other parties have certificates of.
    """
    address = config.compute
    if not address:
        return None
    url = urlsplit(address)
    try:
        good = bool(url.scheme in ("tls", "tcp") and url.hostname and url.port)
    except ValueError:
        good = False
    if not good or url.path or url.query:
        raise ConfigError(f"compute = {address!r}: use tls://HOST:PORT, the party's Dask scheduler")
    if url.scheme == "tls":
        tls = _certificates(config, config.compute_tls)
    elif config.insecure_compute_no_tls:
        log.warning("no TLS to the workers: anybody on the way has this party's shares")
        tls = None
    else:
        raise ConfigError(
            f"compute = {address!r} would send this party's shares in the clear, and run the code "
            f"of anybody who can reach it: use tls://, or set {PLAIN} = true if the network "
            "protects itself"
        )
    party = str(config.identity(role))
    return Reach(address, role, party, tls, config.timeouts.silence)


def _certificates(config: ClusterConfig, given: ComputeTls | None) -> tuple[Path, Path, Path]:
    if given is None:
        raise ConfigError(f"compute = {config.compute!r} needs a table [compute_tls] with {_KEYS}")
    authority, certificate, key = map(config.path, (given.authority, given.certificate, given.key))
    for name, path in (("authority", authority), ("certificate", certificate), ("key", key)):
        if not path.is_file():
            raise ConfigError(f"compute_tls.{name} = {str(path)!r} does not exist: give {_KEYS}")
    check_guarded(authority, certificate)
    check_private(key)
    for path in (authority, certificate):
        if describe(path).days_left < 0:
            raise ConfigError(f"{path} has expired: issue a new one with `puma certs issue`")
    _check_own(config, authority)
    try:
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certificate} and {key} do not belong together ({error}): issue them again"
        ) from None
    return authority, certificate, key


def _check_own(config: ClusterConfig, authority: Path) -> None:
    """Refuse the parties' common authority: every holder of its certificates could use, and be, a
    worker.
    """
    common = config.path(config.certificates) / f"{AUTHORITY}.pem"
    if not common.is_file():
        return
    with reading(common):
        same = ssl.PEM_cert_to_DER_cert(common.read_text()) == ssl.PEM_cert_to_DER_cert(
            authority.read_text()
        )
    if same:
        raise ConfigError(
            f"compute_tls.authority = {str(authority)!r} is the authority of all parties, whose "
            "certificates would then admit them to this party's workers: make one for the workers "
            "alone, with `puma certs init --folder workers`"
        )
