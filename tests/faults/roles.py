"""The processes. They are forked from one that has imported everything and loaded the kernels, so
that a role starts in a fraction of a second; what runs is the `puma` command itself.
"""

import ctypes
import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"


def context() -> ForkServerContext:
    """Where processes come from."""
    path = [
        str(ROOT),
        str(ROOT / "tests"),
        *map(str, (SUPPORT, SUPPORT / "checkpoints", SUPPORT / "sharing")),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path))  # read when it starts
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["faults.preload"])
    return made


def puma(
    arguments: list[str], folder: str, role: str, out: str, errors: str, namespace: str
) -> None:
    """Runs in the new process: a command, with its output in files, and the hooks."""
    if namespace:
        _enter(namespace)
    for path, number in ((out, 1), (errors, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    from faults import hooks
    from puma_actors.cli import main

    hooks.install(Path(folder), role)
    sys.argv = ["puma", *arguments]
    main()


def _enter(namespace: str) -> None:
    """Go to a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if libc.setns(handle, 0) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
    finally:
        os.close(handle)


def start(
    arguments: list[Any], folder: Path, role: str, out: Path, errors: Path, namespace: str = ""
) -> Any:
    """A process with a command, in a network namespace if one is named."""
    process = context().Process(
        target=puma,
        args=([str(a) for a in arguments], str(folder), role, str(out), str(errors), namespace),
        daemon=True,
    )
    process.start()
    return process
