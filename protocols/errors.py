"""Every error this project raises on purpose. Each message names the value and the remedy."""


class PumaError(Exception):
    """Base of all errors below; the command line prints its text. Its exit code is 2 for what the
    user can correct (`ConfigError`, `ModelError`), 3 for `Busy`, and 1 for the others.
    """


class ConfigError(PumaError):
    """A setting, a command-line value or a request is unusable."""


class ModelError(PumaError):
    """A checkpoint, a tokenizer or an architecture cannot be read or is not supported."""


class TransportError(PumaError):
    """A connection could not be made or was lost."""


class ProtocolError(PumaError):
    """The rules between parties were broken."""


class LocalProtocolError(ProtocolError):
    """This side broke them: a bug in the program that was run here."""


class RemoteProtocolError(ProtocolError):
    """The other side broke them: a malformed, unexpected or oversized message."""


class PeerFailed(PumaError):  # noqa: N818 - the name says who failed, not what
    """Another party failed or left; nothing more can be computed in this session."""


class RangeError(PumaError):
    """A value lies outside the range that its fixed-point representation can carry."""


class StoreError(PumaError):
    """A model in a party's store is damaged, missing, or cannot be written."""


class Busy(PumaError):  # noqa: N818 - a state of affairs that passes
    """A party has no place for another session now; the command line exits with code 3."""
