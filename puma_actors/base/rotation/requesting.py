"""Certificates for keys that never leave their machine.

    request(folder, identity)                       at the party: a key, and ROLE.NAME.csr
    sign_request(folder, file, identity, hosts)     at the authority: ROLE.NAME.pem
    install(folder, file)                           at the party: that certificate put in place

A request is PKCS #10: a public key and the holder's identity, signed with the key. It is no secret,
but whoever signs must know from whom it came: `fingerprint` is for comparing it by another way. All
errors are ConfigError.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocols.errors import ConfigError
from puma_actors.base.certs import (
    AUTHORITY,
    Described,
    describe,
    issued_by,
    sign,
    stem,
)
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import (
    check_guarded,
    encode,
    encode_key,
    load_certificate,
    load_key,
    pair_of,
    reading,
    write_new,
)
from puma_actors.base.rotation.placing import alone, fits, place, replace

_MOST_BYTES = 64 << 10


def next_key(private: Path) -> Path:
    """Where a new key waits for its certificate, while another pair is in use."""
    return private.with_name(f"{private.name}.new")


def request(folder: Path, identity: PeerIdentity) -> tuple[Path, str]:
    """Make a key for a party, on its own machine, and a request to sign it.

    The key waits beside the one in use until `install` gets the certificate. Asked again before
    that, the same key is requested again.

    Returns:
        The path of the request, and the fingerprint of its key.
    """
    with reading(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_guarded(folder)
    private = next_key(pair_of(folder, stem(identity))[1])
    with alone(folder):
        if not private.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            write_new(private, encode_key(key), 0o600)
        made = _request(load_key(private), identity)
        path = folder / f"{stem(identity)}.csr"
        replace(path, made.public_bytes(serialization.Encoding.PEM), 0o644)
    return path, fingerprint(made.public_key())


def _request(
    key: ec.EllipticCurvePrivateKey, identity: PeerIdentity
) -> x509.CertificateSigningRequest:
    name = x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, f"PUMA {identity.role}")
    holder = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([name]))
    return builder.add_extension(holder, critical=False).sign(key, hashes.SHA256())


def fingerprint(key: object) -> str:
    """SHA-256 of a public key, in hex."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("not a key made by this program: make one with `puma certs request`")
    encoded = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(encoded).hexdigest()


def sign_request(
    folder: Path,
    file: Path,
    identity: PeerIdentity,
    hosts: Sequence[str] = (),
    days: float = 90,
) -> tuple[Described, str]:
    """Issue a certificate for a request, on the authority's machine.

    Args:
        folder: the authority's.
        file: the request.
        identity: the holder that is expected; another one is refused.
        hosts: as for `issue`; default: those of the certificate that this one replaces.
        days: days until it expires.

    Returns:
        The certificate, and the fingerprint of its key.
    """
    key = _read_request(file, identity)
    path, private = pair_of(folder, stem(identity))
    if private.exists():
        raise ConfigError(
            f"{private} is here, so {identity} has a key that was made here: use `puma certs "
            f"renew`, or remove {path.name} and {private.name} first"
        )
    if not hosts and path.exists():
        hosts = describe(path).hosts
    made = sign(folder, identity, hosts, days, key)
    with alone(folder):
        replace(path, encode(made), 0o644)
    return describe(path), fingerprint(key)


def _read_request(file: Path, identity: PeerIdentity) -> ec.EllipticCurvePublicKey:
    with reading(file), file.open("rb") as opened:
        data = opened.read(_MOST_BYTES)
    remedy = "make a new one with `puma certs request` on the party's machine"
    try:
        found = x509.load_pem_x509_csr(data)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        raise ConfigError(f"{file} is not a request of this program: {remedy}") from None
    holder = PeerIdentity.from_uris(names.get_values_for_type(x509.UniformResourceIdentifier))
    if holder != identity:
        raise ConfigError(f"{file} asks for {holder}, not for {identity}: sign the right one")
    key = found.public_key()
    good = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    if not (good and found.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey)):
        raise ConfigError(f"{file} has no valid key and signature: {remedy}")
    return key


def install(folder: Path, file: Path) -> Described:
    """Put a certificate in place on the machine that has its key, or the authority's new one.

    The key is the one of the latest request, the one in use, or a file beside `file` with the same
    name (from `issue` or `renew` on the authority's machine).

    Raises:
        ConfigError: no key here belongs to it, it is of another authority, or a party could not
            use it; nothing has changed.
    """
    found, certificate = describe(file), load_certificate(file)
    with reading(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_guarded(folder)
    with alone(folder):
        if found.identity is None:
            return _install_authority(folder, certificate)
        private = pair_of(folder, stem(found.identity))[1]
        waiting = next_key(private)
        given = file.with_suffix(private.suffix)
        keys = [key for key in (waiting, private, given) if fits(file, key)]
        if not pair_of(folder, AUTHORITY)[0].exists():
            raise ConfigError(
                f"{folder} has no ca.pem: get it from the authority, and install it first with "
                "`puma certs install ca.pem`"
            )
        if not keys:
            raise ConfigError(
                f"no key in {folder} belongs to {file}: it is for another machine, or for an older "
                "request; make a new one with `puma certs request`"
            )
        path = place(folder, found.identity, certificate, load_key(keys[0]))
        if keys[0] == waiting:
            waiting.unlink()
            private.with_suffix(".csr").unlink(missing_ok=True)
    return describe(path)


def _install_authority(folder: Path, certificate: x509.Certificate) -> Described:
    path, _ = pair_of(folder, AUTHORITY)
    if not issued_by(certificate, certificate):
        raise ConfigError("not an authority's certificate: install the ca.pem of `puma certs init`")
    if path.exists() and load_certificate(path).public_key() != certificate.public_key():
        raise ConfigError(
            f"{path} is of an authority with another key: to change over to a new one, remove it "
            "and all certificates beside it"
        )
    replace(path, encode(certificate), 0o644)
    return describe(path)
