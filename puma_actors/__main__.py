"""`python -m puma_actors`: the `puma` command, where its folder is not on the PATH."""

from puma_actors.cli import main

main()
