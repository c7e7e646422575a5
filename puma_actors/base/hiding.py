"""Detect a user's own `models.py` or `protocols.py` that hides this project's packages."""

from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from sys import modules

_INSIDE = {"models": ("programs", "families"), "protocols": ("kernels", "jit")}
"""For each package: a wing and a module that no other package has by chance."""


def refuse_hidden(home: Path) -> None:
    """Check that `models` and `protocols` are this project's, without importing them.

    Args:
        home: the folder, or the archive, from which `puma_actors` was imported.

    Raises:
        ImportError: another module has that name; the message gives its file and a remedy.
    """
    for package, (wing, module) in _INSIDE.items():
        try:
            spec = find_spec(package)
        except ValueError:  # a module created at run time
            spec = None
        if spec is None:  # missing or created at run time: importing it will fail by itself
            continue
        places = list(spec.submodule_search_locations or ())
        if str(home / package) in places or _holds(places, package, wing, module):
            continue
        raise ImportError(_hidden(package, spec.origin, places), name=package, path=spec.origin)


def _holds(places: Iterable[str], package: str, wing: str, module: str) -> bool:
    """Whether it is a copy of our package in another place, such as a linked folder."""
    inside = [str(Path(place) / wing) for place in places]
    return PathFinder.find_spec(f"{package}.{wing}.{module}", inside) is not None


def _hidden(package: str, origin: str | None, places: list[str]) -> str:
    where = Path(origin or (places or [package])[0])
    if where.name == "__init__.py":
        where = where.parent
    remedy = "rename it"
    if {"site-packages", "dist-packages"} & {*where.parts}:
        remedy = "uninstall its distribution, or install puma-actors in a separate environment"
    elif package in modules:
        remedy = "rename it, and restart Python"
    return f"{where} hides the package '{package}' of puma-actors: {remedy}"
