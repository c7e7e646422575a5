"""The `puma` command. Results go to stdout, progress and logs to stderr."""

from puma_actors.cli.app import main

__all__ = ["main"]
