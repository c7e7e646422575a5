"""Imported once, by the process that all others are forked from. Starts no threads of Python's."""

import faults.hooks  # noqa: F401
import puma_actors.cli.commands.generate
import puma_actors.cli.commands.hosts
import puma_actors.hosts.doctor  # noqa: F401
from protocols.kernels import warm_up

warm_up()
