"""A small certificate authority for the parties of a session.

    create_authority(folder)                               ca.pem, ca.key
    issue(folder, PeerIdentity(role, name), hosts)         ROLE.NAME.pem, ROLE.NAME.key
    load_context(folder, identity, server=True)            an ssl.SSLContext for TLS 1.3
    describe(folder / "ca.pem")                            the contents of a certificate

A certificate contains its holder's role and name in a URI (`puma:dealer/dora`) and the hosts where
the holder may be called. Keys are ECDSA P-256, in files that only their owner can read. Nothing is
overwritten here; `puma_actors.base.rotation` replaces certificates before they expire, and signs
those of keys that were made elsewhere.

A party's machine needs ca.pem and its own pair; ca.key stays where certificates are issued. All
errors are ConfigError.
"""

import ipaddress
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocols.base.shares import COMPUTING
from protocols.errors import ConfigError
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import (
    check_guarded,
    check_private,
    former_key,
    load_certificate,
    load_key,
    pair_of,
    reading,
    refuse_to_overwrite,
    write_pair,
)
from puma_actors.base.logs import log

AUTHORITY = "ca"
_SKEW = timedelta(minutes=5)
SOON_DAYS = 14
"""Warnings begin this many days before a certificate expires."""
_MOST_DAYS = 36525


@dataclass(frozen=True, slots=True)
class Described:
    """The contents of a certificate. `identity` is None for an authority."""

    path: Path
    subject: str
    identity: PeerIdentity | None
    hosts: tuple[str, ...]
    not_after: datetime

    @property
    def days_left(self) -> float:
        """Days until it expires; negative afterwards."""
        return (self.not_after - datetime.now(UTC)) / timedelta(days=1)


def stem(identity: PeerIdentity) -> str:
    """Name of a certificate's files, without the suffix."""
    if identity.name == identity.role:
        return str(identity.role)
    return f"{identity.role}.{quote(identity.name, safe='')}"


# -- making ----------------------------------------------------------------------------------------


def create_authority(folder: Path, days: float = 3650) -> Path:
    """Create a folder with a new authority; return its certificate's path."""
    with reading(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    certificate, private = pair_of(folder, AUTHORITY)
    refuse_to_overwrite(certificate, private)
    key = ec.generate_private_key(ec.SECP256R1())
    write_pair(certificate, private, sign_authority(key, days), key)
    return certificate


def sign_authority(key: ec.EllipticCurvePrivateKey, days: float) -> x509.Certificate:
    """An authority's certificate for its own key. Whoever trusts an older one for the same key
    accepts what this authority signs, until the older one expires.
    """
    subject = _name("PUMA certificate authority")
    builder = (
        _builder(subject, subject, key.public_key(), _lifetime(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
    )
    return builder.sign(key, hashes.SHA256())


def issue(
    folder: Path, identity: PeerIdentity, hosts: Sequence[str] = (), days: float = 90
) -> Path:
    """Create a key and a certificate for a party; return the certificate's path.

    Args:
        folder: contains the authority's certificate and key.
        identity: the holder.
        hosts: names and IP addresses where the party may be called; none for an owner or a client,
            which only call.
        days: days until it expires; not after the authority.
    """
    certificate, private = pair_of(folder, stem(identity))
    key = ec.generate_private_key(ec.SECP256R1())
    made = sign(folder, identity, hosts, days, key.public_key())
    refuse_to_overwrite(certificate, private)
    write_pair(certificate, private, made, key)
    return certificate


def sign(
    folder: Path,
    identity: PeerIdentity,
    hosts: Sequence[str],
    days: float,
    key: ec.EllipticCurvePublicKey,
) -> x509.Certificate:
    """A certificate for a party's public key; arguments as for `issue`. Nothing is written."""
    if identity.role in COMPUTING and not hosts:
        raise ConfigError(
            f"callers accept no certificate for {identity} without a host: add "
            "--host HOST, the name or IP address in its tls:// address (unix:// needs none)"
        )
    authority, signer = load_authority(folder)
    until = _lifetime(days)
    if until > authority.not_valid_after_utc:
        raise ConfigError(
            f"the authority in {folder} expires on {_day(authority)}, in less than {days:g} days: "
            "use fewer days, or renew it with `puma certs renew --authority`"
        )
    names = [x509.UniformResourceIdentifier(identity.uri), *map(_host, hosts)]
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = (
        _builder(_name(f"PUMA {identity.role}"), authority.subject, key, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return builder.sign(signer, hashes.SHA256())


def load_authority(
    folder: Path, *, expired: bool = False
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The authority's certificate and key, to sign with.

    Args:
        expired: accept an authority that has expired.
    """
    path, private = pair_of(folder, AUTHORITY)
    check_guarded(folder, path)
    authority = load_certificate(path)
    if not private.exists():
        raise ConfigError(
            f"{folder} has no {private.name}: certificates are signed on the authority's machine. "
            "Here, make a key and a request for it with `puma certs request`"
        )
    signer = load_key(private)
    if signer.public_key() != authority.public_key():
        raise ConfigError(f"{path} and {private} do not belong together: restore both from a copy")
    if not expired and datetime.now(UTC) > authority.not_valid_after_utc:
        raise ConfigError(f"{path} expired on {_day(authority)}: {_AUTHORITY_REMEDY}")
    return authority, signer


def _lifetime(days: float) -> datetime:
    if not 0 < days <= _MOST_DAYS:
        raise ConfigError(f"{days:g} days: use more than 0 and at most {_MOST_DAYS}")
    return datetime.now(UTC) + timedelta(days=days)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    good = all(part and part.replace("-", "").isalnum() for part in labels)
    if not (good and host.isascii() and len(host) < 254):
        raise ConfigError(f"bad host {host!r}: use a name like node1.example or an IP address")
    return x509.DNSName(host)


# -- using -----------------------------------------------------------------------------------------


def load_context(folder: Path, identity: PeerIdentity, *, server: bool) -> ssl.SSLContext:
    """TLS 1.3 for one party: its certificate, and trust only in its authority."""
    authority_path, _ = pair_of(folder, AUTHORITY)
    certificate_path, private = pair_of(folder, stem(identity))
    check_guarded(folder, authority_path, certificate_path)
    authority, certificate = load_certificate(authority_path), load_certificate(certificate_path)
    _check_dates(authority_path, authority, _AUTHORITY_REMEDY)
    _check_dates(certificate_path, certificate, _renewal(identity))
    if not issued_by(certificate, authority):
        raise ConfigError(
            f"{certificate_path} was not issued by {authority_path}: {_rotation(identity, folder)}"
        )
    if describe(certificate_path).identity != identity:
        raise ConfigError(
            f"{certificate_path} is not for {identity}: {_rotation(identity, folder)}"
        )
    check_private(private)
    try:
        return _context(authority_path, certificate_path, private, server=server)
    except ConfigError:
        former = former_key(private)
        if not former.exists():
            raise
        check_private(former)  # the key was just replaced, and the certificate is not yet
        return _context(authority_path, certificate_path, former, server=server)


def files_of(folder: Path, identity: PeerIdentity) -> tuple[Path, ...]:
    """The files that `load_context` reads."""
    return pair_of(folder, AUTHORITY)[0], *pair_of(folder, stem(identity))


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority's key has signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _context(authority: Path, certificate: Path, key: Path, *, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        context.num_tickets = 0  # sessions are never resumed
    try:
        context.load_verify_locations(cafile=authority)
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            f"{certificate} and {key} do not belong together ({error}): issue them again"
        ) from None
    return context


_AUTHORITY_REMEDY = (
    "renew it on its machine with `puma certs renew --authority`, and copy ca.pem to every machine"
)


def _renewal(identity: PeerIdentity) -> str:
    return (
        f"renew it on the authority's machine with `puma certs renew --role {identity.role} --name "
        f"{identity.name}`, or here with `puma certs request`"
    )


def _rotation(identity: PeerIdentity, folder: Path) -> str:
    name, host = stem(identity), " --host HOST" if identity.role in COMPUTING else ""
    return (
        f"remove {name}.pem and {name}.key from {folder}, then run `puma certs issue "
        f"--folder {folder} --role {identity.role} --name {identity.name}{host}`"
    )


def _check_dates(path: Path, certificate: x509.Certificate, remedy: str) -> None:
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise ConfigError(f"{path} expired on {_day(certificate)}: {remedy}")
    if now < certificate.not_valid_before_utc:
        raise ConfigError(f"{path} is not valid yet: set this machine's clock")
    if now + timedelta(days=SOON_DAYS) > certificate.not_valid_after_utc:
        log.warning("certificate expires soon", path=str(path), on=_day(certificate))


def _day(certificate: x509.Certificate) -> str:
    return certificate.not_valid_after_utc.strftime("%Y-%m-%d %H:%M UTC")


def describe(path: Path) -> Described:
    """The contents of the certificate in a PEM file."""
    certificate = load_certificate(path)
    identity, hosts = None, []
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        identity = PeerIdentity.from_uris(uris)
        hosts = [str(found) for found in names.get_values_for_type(x509.DNSName)]
        hosts += [str(found) for found in names.get_values_for_type(x509.IPAddress)]
    except x509.ExtensionNotFound:
        pass
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return Described(
        path,
        certificate.subject.rfc4514_string(),
        identity,
        tuple(hosts),
        certificate.not_valid_after_utc,
    )


def expiring(folder: Path, identity: PeerIdentity) -> list[Described]:
    """The certificates of a party that will expire: its authority's, and its own."""
    return [describe(pair_of(folder, name)[0]) for name in (AUTHORITY, stem(identity))]


def describe_all(folder: Path) -> list[Described]:
    """Every certificate in a folder, the authority first."""
    with reading(folder):
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".pem")
    if not paths:
        raise ConfigError(f"no certificate in {folder}: run `puma certs init`")
    return sorted(map(describe, paths), key=lambda found: found.identity is not None)
