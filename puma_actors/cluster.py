"""`LocalCluster` under its former path."""

from puma_actors.api.local import LocalCluster, Token, Usage

__all__ = ["LocalCluster", "Token", "Usage"]
