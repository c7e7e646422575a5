"""The identity in a certificate: the URI `puma:role/name`."""

from dataclasses import dataclass, field
from typing import Self
from urllib.parse import quote, unquote

from protocols.base.shares import Role
from protocols.errors import ConfigError

NAME_CHARS = 64
"""Longest name of a party, so that it fits handshakes and certificates."""
ROLES = (Role.DEALER, Role.EVALUATOR_A, Role.EVALUATOR_B, Role.OWNER, Role.CLIENT)
"""Roles that can be on a network; `Role.TRACE` cannot."""
_SCHEME = "puma:"


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A role, and the name of its holder.

    Attributes:
        certificate: SHA-256 of the certificate that proves it, in hex; empty if none was shown.
        expires: when that certificate does, in seconds since 1970; 0 if none was shown.

    Raises:
        ConfigError: no such role, or a name that is empty, unprintable or longer than 64
        characters.
    """

    role: Role
    name: str
    certificate: str = field(default="", compare=False)
    expires: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConfigError(f"{self.role!r} is not a role: use one of {', '.join(ROLES)}")
        if not 0 < len(self.name) <= NAME_CHARS or not self.name.isprintable():
            raise ConfigError(
                f"bad name {self.name[:NAME_CHARS]!r}: use 1 to {NAME_CHARS} printable characters"
            )

    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"

    @property
    def uri(self) -> str:
        """The form used in a certificate."""
        return f"{_SCHEME}{self.role}/{quote(self.name, safe='')}"

    @classmethod
    def from_uris(cls, uris: list[str]) -> Self:
        """The single identity among the URIs of a certificate.

        Raises:
            ConfigError: there is none, there are several, or it is malformed.
        """
        found = [uri for uri in uris if uri.startswith(_SCHEME)]
        if len(found) != 1:
            raise ConfigError(
                f"the certificate names {len(found)} roles instead of one: create one with "
                "`puma certs issue`"
            )
        role, slash, name = found[0].removeprefix(_SCHEME).partition("/")
        if not slash or role not in set(Role):
            raise ConfigError(f"the certificate's role {found[0]!r} is not puma:ROLE/NAME")
        return cls(Role(role), unquote(name))
