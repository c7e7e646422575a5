"""Imported once, by the process that all others are forked from. Starts no threads of Python's."""

import faults.hooks  # noqa: F401
import puma_actors.cli.generate
import puma_actors.cli.hosts
import puma_actors.doctor  # noqa: F401
from protocols.kernels import warm_up

warm_up()
