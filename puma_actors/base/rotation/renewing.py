"""New certificates for the names of old ones, on the authority's machine.

    due(folder, within=30)              the certificates that expire within 30 days
    renew(folder, identity, days=90)    a new key and certificate for the same name and hosts
    renew_authority(folder, days=3650)  ca.pem anew for the same key, so that old peers accept both

All errors are ConfigError.
"""

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocols.errors import ConfigError
from puma_actors.base.certs import (
    AUTHORITY,
    Described,
    describe,
    describe_all,
    issued_by,
    load_authority,
    sign,
    sign_authority,
    stem,
)
from puma_actors.base.identity import PeerIdentity
from puma_actors.base.keyfiles import encode, former_key, load_certificate, pair_of
from puma_actors.base.rotation.placing import alone, place, replace


def has_key(folder: Path, identity: PeerIdentity) -> bool:
    """Whether the key of a party's certificate is here, and not on the party's machine alone."""
    private = pair_of(folder, stem(identity))[1]
    return private.exists() or former_key(private).exists()


def due(folder: Path, within: float) -> list[Described]:
    """Parties' certificates in a folder that expire within so many days, or have expired."""
    return [
        found
        for found in describe_all(folder)
        if found.identity is not None and found.days_left <= within
    ]


def renew(folder: Path, identity: PeerIdentity, days: float = 90) -> Described:
    """Replace a party's key and certificate by new ones for the same name and hosts.

    At every moment the folder has a valid pair; see `placing`. An expired certificate is renewed
    like any other.

    Raises:
        ConfigError: this is not the authority's machine; the authority has expired, or does so
            earlier than in `days`; there is no such certificate; its key was made elsewhere.
    """
    authority, _ = load_authority(folder)
    path, private = pair_of(folder, stem(identity))
    if not path.exists():
        raise ConfigError(
            f"{folder} has no certificate for {identity}: `puma certs show` lists those there are, "
            "`puma certs issue` makes a new one"
        )
    former = describe(path)
    if former.identity != identity:
        raise ConfigError(f"{path} is for {former.identity}, not for {identity}: rename its files")
    if not issued_by(load_certificate(path), authority):
        raise ConfigError(
            f"{path} was not issued by the authority in {folder}: renew it where it was, or remove "
            "it and use `puma certs issue`"
        )
    if not has_key(folder, identity):
        raise ConfigError(
            f"{private} is not here: the key of {identity} is on the party's own machine. Use "
            "`puma certs request` there and `puma certs sign` here; or, to make a key here, remove "
            f"{path.name} and use `puma certs issue`"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    made = sign(folder, identity, former.hosts, days, key.public_key())
    with alone(folder):
        return describe(place(folder, identity, made, key))


def renew_authority(folder: Path, days: float = 3650) -> Described:
    """Replace ca.pem by a new certificate for the same key.

    Machines that still have the old ca.pem accept the same parties until it expires; those that
    have the new one accept all certificates that were issued before.

    Raises:
        ConfigError: this is not the authority's machine.
    """
    path, _ = pair_of(folder, AUTHORITY)
    with alone(folder):
        _, signer = load_authority(folder, expired=True)
        made = sign_authority(signer, days)
        if not issued_by(made, made):
            raise ConfigError(f"{path} could not be signed anew: its key is of another program")
        replace(path, encode(made), 0o644)
    return describe(path)
