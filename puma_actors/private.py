"""`PrivateModel` under its former path."""

from puma_actors.api.blocking import PrivateModel

__all__ = ["PrivateModel"]
