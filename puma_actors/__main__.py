"""`python -m puma_actors`: the `puma` command, for when its folder is not on the PATH."""

from puma_actors.cli import main

main()
