"""Arithmetic kernels in Numba, each with a plain NumPy twin of the same signature."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from protocols.kernels import ctr, forest
from protocols.kernels.aesni import available
from protocols.kernels.jit import MODE, kernels, sources_digest
from protocols.kernels.places import CacheWarning, Place, place

__all__ = ["CacheWarning", "Place", "cached", "place", "warm_up"]

_INSTRUCTIONS = (ctr.__name__, forest.__name__)


def cached() -> int:
    """How many kernels of these sources lie in the on-disk cache. Raises ConfigError."""
    folder = place().folder
    return len(list(folder.rglob(f"*{sources_digest()}*.nbi"))) if folder else 0


def warm_up(progress: Callable[[str], None] | None = None) -> None:
    """Compile every kernel this machine can use, or load it from the on-disk cache.

    `progress` gets a line before each. Does nothing when PUMA_KERNELS=numpy.
    """
    if MODE == "numpy":
        return
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)  # registers its kernels
    made = [k for k in kernels() if available() or k.function.__module__ not in _INSTRUCTIONS]
    doing = "loading" if cached() >= len(made) else "compiling"
    for number, item in enumerate(made, 1):
        if progress is not None:
            progress(f"{doing} kernel {number}/{len(made)}: {item.__name__}")
        item.compiled()
