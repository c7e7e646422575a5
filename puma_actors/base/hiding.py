"""Tells when a user's own `models.py` or `protocols.py` stands before this project's packages."""

from collections.abc import Iterable
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from sys import modules

_INSIDE = {"models": ("programs", "families"), "protocols": ("kernels", "jit")}
"""By package: a wing and a module in it that no other package has by chance."""


def refuse_hidden(home: Path) -> None:
    """Check that `models` and `protocols` are this project's, without importing them.

    Args:
        home: the folder, or the archive, from which `puma_actors` was imported.

    Raises:
        ImportError: something else has the name; the message says which file, and what to do.
    """
    for package, (wing, module) in _INSIDE.items():
        try:
            spec = find_spec(package)
        except ValueError:  # a module that somebody made up at run time
            spec = None
        if spec is None:  # missing or made up: an import of it says so itself
            continue
        places = list(spec.submodule_search_locations or ())
        if str(home / package) in places or _holds(places, package, wing, module):
            continue
        raise ImportError(_hidden(package, spec.origin, places), name=package, path=spec.origin)


def _holds(places: Iterable[str], package: str, wing: str, module: str) -> bool:
    """Whether it is a copy of ours that lies elsewhere: linked, or in a folder of its own."""
    inside = [str(Path(place) / wing) for place in places]
    return PathFinder.find_spec(f"{package}.{wing}.{module}", inside) is not None


def _hidden(package: str, origin: str | None, places: list[str]) -> str:
    where = Path(origin or (places or [package])[0])
    if where.name == "__init__.py":
        where = where.parent
    remedy = "rename it"
    if {"site-packages", "dist-packages"} & {*where.parts}:
        remedy = "uninstall what brought it, or install puma-actors in an environment of its own"
    elif package in modules:
        remedy = "rename it, and start Python anew"
    return f"{where} hides the package '{package}' of puma-actors: {remedy}"
