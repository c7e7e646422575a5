"""SPU's own environment: a virtual environment beside ours, made once."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from protocols.errors import ConfigError

SPU = "spu==0.9.5"
PYTHONS = ("3.11", "3.10")
"""SPU has no packages for others."""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def execute(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False)


def spu_python(folder: Path, log: Callable[[str], None], run: Run = execute) -> Path:
    """The Python of the environment in `folder`, which is made if it is not there.

    Raises:
        ConfigError: no fitting Python, or the packages cannot be installed.
    """
    python, ready = folder / "bin" / "python", folder / f".{SPU}"
    if ready.is_file():
        return python
    base = _base(run)
    log(f"installing {SPU} into {folder} (once, about 20 seconds, 1 GB)")
    _check(run([base, "-m", "venv", "--clear", str(folder)]), f"{folder}: no environment made")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _check(
        run([*pip, "--no-compile", SPU]),
        f"{SPU} cannot be installed; check that the package registry can be reached from here",
    )
    _check(run([str(python), "-c", "import spu"]), f"{SPU} does not start on this machine")
    ready.touch()
    return python


def _base(run: Run) -> str:
    """A Python that SPU has packages for."""
    for candidate in (sys.executable, *(f"python{version}" for version in PYTHONS)):
        path = shutil.which(candidate)
        if path is None:
            continue
        # Asked, because the name may be of a launcher that has no such version.
        said = run([path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"])
        if said.returncode == 0 and said.stdout.strip() in PYTHONS:
            return path
    wanted = " or ".join(PYTHONS)
    raise ConfigError(f"{SPU} needs Python {wanted}, and neither is on PATH: install one of them")


def _check(done: "subprocess.CompletedProcess[str]", what: str) -> None:
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigError(f"{what}: {lines[-1] if lines else f'exit code {done.returncode}'}")
