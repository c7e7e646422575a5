"""Arithmetic kernels in Numba, each with a plain NumPy twin of the same signature."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import walk_packages

from protocols.kernels import forest
from protocols.kernels.aes import buckets, ctr, ladder
from protocols.kernels.aes.aesni import available
from protocols.kernels.jit import MODE, kernels, sources_digest
from protocols.kernels.places import CacheWarning, Place, place

__all__ = ["CacheWarning", "Place", "cached", "place", "warm_up"]

_STORED = f"{__name__}.stored."
_INSTRUCTIONS = (buckets.__name__, ctr.__name__, forest.__name__, ladder.__name__)


def cached() -> int:
    """The number of kernels of these sources in the on-disk cache. Raises ConfigError."""
    folder = place().folder
    return len(list(folder.rglob(f"*{sources_digest()}*.nbi"))) if folder else 0


def warm_up(progress: Callable[[str], None] | None = None, *, public_weights: bool = False) -> None:
    """Compile every kernel this machine can use, or load it from the on-disk cache. Does nothing
    when PUMA_KERNELS=numpy.

    Args:
        progress: called with a line of text before each.
        public_weights: also those that only products with public weights need.
    """
    if MODE == "numpy":
        return
    for module in walk_packages(__path__, f"{__name__}."):
        import_module(module.name)  # registers its kernels
    usable = [k for k in kernels() if available() or k.function.__module__ not in _INSTRUCTIONS]
    made = [k for k in usable if public_weights or not k.function.__module__.startswith(_STORED)]
    doing = "loading" if cached() >= len(made) else "compiling"
    for number, item in enumerate(made, 1):
        if progress is not None:
            progress(f"{doing} kernel {number}/{len(made)}: {item.__name__}")
        item.compiled()
