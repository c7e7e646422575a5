"""Every error this project raises on purpose. Each message names the value and the remedy.

Each class says what to do about its kind, and the exit code with which the command line ends.
"""

from typing import ClassVar

EXIT_FAILURE = 1
"""Something went wrong on the way; the same request may well succeed later."""
EXIT_BAD_INPUT = 2
"""The request cannot be carried out as it is: correct it."""
EXIT_BUSY = 3
"""Nothing is wrong: try again later."""
EXIT_STORE = 4
"""What a party has stored is unusable: its operator has to repair or remove it."""
EXIT_INTERRUPTED = 130
"""Ctrl-C, as shells count it."""


class PumaError(Exception):
    """Base class of all errors below; the command line prints the message."""

    exit_code: ClassVar[int] = EXIT_FAILURE
    remedy: ClassVar[str] = "read the message; --debug shows where it happened"


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

    remedy = "check that the other side is running and the network is up, and try again"


class ConnectError(TransportError):
    """A connection could not be made: nothing was sent."""

    remedy = "start the other side, or correct its address or certificate"


class NoAnswerError(TransportError):
    """The other side did not answer in time; it may have received what was sent."""

    remedy = "check whether the other side hangs or is overloaded, or allow more time (timeouts)"


class ConnectionLostError(TransportError):
    """A connection broke while it was in use, or the other side closed it."""

    remedy = "read the other side's log: it ended, or the network broke; then try again"


class WorkersError(TransportError):
    """A machine that a party computes on is gone or unreachable, or has no room."""

    remedy = "read the log of the party named in the message, start its workers, and try again"


class ProtocolError(PumaError):
    """The rules between parties were broken."""

    remedy = "have all parties run the same version"


class LocalProtocolError(ProtocolError):
    """This side broke the rules: a bug in the program that ran here."""

    remedy = "this is a bug: report it with the output of --debug"


class RemoteProtocolError(ProtocolError):
    """The other side broke the rules: a malformed, unexpected or oversized message."""

    remedy = "check what answers at that address, and that it runs the same version"


class PeerFailed(PumaError):  # noqa: N818 - the name says who failed, not what
    """Another party failed or left; nothing more can be computed in this session."""

    remedy = "read the log of the party named in the message, then open a new session"


class RangeError(PumaError):
    """A value lies outside the range that its fixed-point representation can carry."""

    remedy = "use other weights or inputs: `puma compare` shows where the values go wrong"


class StoreError(PumaError):
    """What a party has stored is damaged, or cannot be read, written or removed."""

    exit_code = EXIT_STORE
    remedy = "remove the model from all parties and upload it again, once the disk is in order"


class StoreNameError(StoreError):
    """A store has no model of that name, or already has one."""

    exit_code = EXIT_BAD_INPUT
    remedy = "use another name: `puma models list` shows the stored ones"


class Busy(PumaError):  # noqa: N818 - a temporary state, not an error
    """A party cannot take another session now."""

    exit_code = EXIT_BUSY
    remedy = "try again later"
