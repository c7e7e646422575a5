"""`PrivateModel` under the path that programs know."""

from puma_actors.api.blocking import PrivateModel

__all__ = ["PrivateModel"]
