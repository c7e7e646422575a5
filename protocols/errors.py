"""Every error this project raises on purpose. Each message names the value and the remedy.

Each class says what to do about its kind, and the exit code with which the command line ends.
"""

from typing import ClassVar

EXIT_FAILURE = 1
"""Something went wrong on the way; the same request may well succeed later."""
EXIT_BAD_INPUT = 2
"""What was asked for cannot be done as it was asked: correct it."""
EXIT_BUSY = 3
"""Nothing is wrong: try again later."""
EXIT_STORE = 4
"""What a party has stored is of no use: its operator has to see to it."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells count it."""


class PumaError(Exception):
    """Base of all errors below; the command line prints its text."""

    exit_code: ClassVar[int] = EXIT_FAILURE
    remedy: ClassVar[str] = "see what the message says; --debug shows where it happened"


class ConfigError(PumaError):
    """A setting, a command-line value or a request is unusable."""

    exit_code = EXIT_BAD_INPUT
    remedy = "correct the setting or the value that the message names"


class ModelError(PumaError):
    """A checkpoint, a tokenizer or an architecture cannot be read or is not supported."""

    exit_code = EXIT_BAD_INPUT
    remedy = "choose another model, or repair the file that the message names"


class TransportError(PumaError):
    """A connection could not be made or was lost."""

    remedy = "see whether the other side runs and the network is there, and try again"


class ConnectError(TransportError):
    """A connection could not be made: nothing was sent."""

    remedy = "start the other side, or correct its address or certificate"


class NoAnswerError(TransportError):
    """The other side said nothing in time; it may have got what was sent."""

    remedy = "see whether the other side hangs or is overloaded, or allow more time (timeouts)"


class ConnectionLostError(TransportError):
    """A connection broke while it was in use, or the other side closed it."""

    remedy = "read the other side's log: it ended, or the network broke; then try again"


class ProtocolError(PumaError):
    """The rules between parties were broken."""

    remedy = "have all parties run the same version"


class LocalProtocolError(ProtocolError):
    """This side broke them: a bug in the program that was run here."""

    remedy = "report it with what --debug shows: it is a bug"


class RemoteProtocolError(ProtocolError):
    """The other side broke them: a malformed, unexpected or oversized message."""

    remedy = "see who answers there, and that it runs the same version"


class PeerFailed(PumaError):  # noqa: N818 - the name says who failed, not what
    """Another party failed or left; nothing more can be computed in this session."""

    remedy = "read the log of the party that is named, then open a new session"


class RangeError(PumaError):
    """A value lies outside the range that its fixed-point representation can carry."""

    remedy = "use other weights or inputs: `puma compare` shows where they go astray"


class StoreError(PumaError):
    """What a party has stored is damaged, or cannot be read, written or removed."""

    exit_code = EXIT_STORE
    remedy = "remove the model from all parties and upload it again, once the disk is in order"


class StoreNameError(StoreError):
    """A store has no model of a name, or has one already."""

    exit_code = EXIT_BAD_INPUT
    remedy = "use another name: `puma models list` shows what there is"


class Busy(PumaError):  # noqa: N818 - a state of affairs that passes
    """A party has no place for another session now."""

    exit_code = EXIT_BUSY
    remedy = "try again later"
