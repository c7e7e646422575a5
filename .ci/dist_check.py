"""Build an sdist and a wheel, install the wheel into an empty environment, and try it there.

Run by `make dist-check`, with the Python of the development environment. The new environment sees
only its own packages: the wheel and its declared dependencies, linked from here and so without a
network. Anything that the wheel does not declare is missing there.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("models/", "protocols/", "puma_actors/")
DATA = ("puma_actors/profiling/page.html", *(f"{package}py.typed" for package in PACKAGES))
CLUSTER = """
import anyio, sys
from puma_actors import LocalCluster

async def main():
    async with LocalCluster.from_pretrained(sys.argv[1]) as cluster:
        assert (await cluster.forward([1, 2, 3])).shape[0] == 3
        assert cluster.usage.total.rounds == cluster.predict(3)[0].rounds

anyio.run(main)
"""
INSTALLED = """
import importlib.resources, sys, models, protocols, puma_actors
for package in (models, protocols, puma_actors):
    assert package.__file__.startswith(sys.prefix), package.__file__
for name in sys.argv[1:]:
    package, _, path = name.partition("/")
    assert importlib.resources.files(package).joinpath(path).is_file(), name
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """stdout of a command; its stderr is shown if it fails."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def tracked() -> set[str]:
    """Every file of the repository, as in a fresh clone."""
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}


def build(folder: Path, names: set[str]) -> tuple[Path, Path]:
    """An sdist and, from that sdist, a wheel. Built from a copy, so that stray files stay out."""
    source = folder / "source"
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        missing, more = sorted(wanted - found), sorted(found - wanted)
        sys.exit(f"{what}: missing {missing}, unexpected {more}")


def check_contents(sdist: Path, wheel: Path, names: set[str]) -> None:
    """The sdist is the repository; the wheel is the three packages, with their data."""
    with tarfile.open(sdist) as archive:
        found = {each.name.partition("/")[2] for each in archive if each.isfile()}
    made = {name for name in found if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    compare("sdist", found - made, names)
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        licensed = any(name.endswith("/LICENSE") for name in archive.namelist())
    compare("wheel", found, {name for name in names if name.startswith(PACKAGES)})
    compare("data in the wheel", set(DATA) & found, set(DATA))
    if not licensed:
        sys.exit("wheel: no LICENSE")


def closure(wheel: Path) -> dict[str, Distribution]:
    """The wheel's dependencies, direct and indirect."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    start = "Requires-Dist: "
    waiting = [Requirement(each.removeprefix(start)) for each in lines if each.startswith(start)]
    found: dict[str, Distribution] = {}
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        if wanted.marker and not any(wanted.marker.evaluate({"extra": each}) for each in extras):
            continue
        if wanted.name not in found:
            found[wanted.name] = distribution(wanted.name)
            waiting += map(Requirement, found[wanted.name].requires or ())
    return found


def install(folder: Path, wheel: Path) -> Path:
    """Install the wheel into a new environment with pip; returns its folder of commands."""
    environment = folder / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=folder)
    (site,) = environment.glob("lib/python*/site-packages")
    for dependency in closure(wheel).values():
        for first in {file.parts[0] for file in dependency.files or ()} - {"..", "__pycache__"}:
            if not (site / first).exists():
                (site / first).symlink_to(str(dependency.locate_file(first)))
    python = environment / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-index", "--no-compile", wheel, cwd=folder)
    return environment / "bin"


def smoke(binaries: Path, folder: Path) -> None:
    """Run commands and a cluster from a folder outside the project."""
    away = folder / "away"
    away.mkdir()
    model = folder / "model"
    made = "import sys; from reference import save_model; save_model(sys.argv[1], seed=3)"
    support = os.pathsep.join(
        str(ROOT / path) for path in (".", "tests/support", "tests/support/checkpoints")
    )
    run(sys.executable, "-c", made, model, cwd=away, PYTHONPATH=support)
    python, puma = binaries / "python", binaries / "puma"
    run(python, "-c", INSTALLED, *DATA, cwd=away)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    assert version in run(puma, "--version", cwd=away)
    assert json.loads(run(puma, "costs", "--json", cwd=away))
    assert json.loads(run(puma, "inspect", model, "--json", cwd=away))
    run(python, "-c", CLUSTER, model, cwd=away)


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="puma-dist-") as name:
        folder = Path(name)
        names = tracked()
        sdist, wheel = build(folder, names)
        check_contents(sdist, wheel, names)
        smoke(install(folder, wheel), folder)
        print(f"{sdist.name} and {wheel.name} are OK ({time.monotonic() - started:.0f} s)")


if __name__ == "__main__":
    main()
