"""`python -m bench.serve`: a load of your choice; `python -m bench serve.load` is the usual one."""

import argparse
import sys
from pathlib import Path

from bench.serve.load import Wanted, run
from bench.tools.report import console
from models.files.locate import demo_model_path
from protocols.errors import PumaError


def main() -> int:
    """Exit code: 0, or 1 if a client got a wrong answer, or neither an answer nor a reason."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder; default: the demo model")
    parser.add_argument(
        "--small", action="store_true", help="a generated model, and requests of many lengths"
    )
    parser.add_argument("--clients", default="1,2,4,16", help="how many, one load after another")
    parser.add_argument("--requests", type=int, default=2, help="of each client")
    parser.add_argument("--seconds", type=float, help="let clients ask for so long instead")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer")
    parser.add_argument("--at-once", type=int, default=4, help="as for `puma serve`")
    parser.add_argument("--network", default="", help="emulated between all, such as wan")
    parser.add_argument("--leaving", type=float, default=0.0, help="fraction that hangs up")
    parser.add_argument("--restart", action="store_true", help="of a party, in each load")
    given = parser.parse_args()
    wanted = Wanted(
        None if given.small else given.model or demo_model_path(),
        [int(each) for each in given.clients.split(",")],
        given.requests,
        given.seconds,
        given.tokens,
        given.at_once,
        given.network,
        given.leaving,
        given.restart,
    )
    out = console()
    try:
        for result in run(wanted, "serve.load"):
            rate = f" {result.rate.median:.2f} tokens/s;" if result.rate else ""
            out.print(f"{result.case}:{rate} {result.note}", soft_wrap=True)
    except PumaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
