"""`LocalCluster` under the path that programs know."""

from puma_actors.api.local import LocalCluster, Token, Usage

__all__ = ["LocalCluster", "Token", "Usage"]
