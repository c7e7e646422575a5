"""Arithmetic kernels in Numba, each with a plain NumPy twin of the same signature."""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules

from protocols.kernels import forest
from protocols.kernels.aesni import available
from protocols.kernels.jit import MODE, kernels

__all__ = ["warm_up"]


def warm_up(progress: Callable[[str], None] | None = None) -> None:
    """Compile every kernel this machine can use, or load it from the on-disk cache.

    `progress` gets a line before each. Does nothing when PUMA_KERNELS=numpy.
    """
    if MODE == "numpy":
        return
    for module in iter_modules(__path__, f"{__name__}."):
        import_module(module.name)  # registers its kernels
    made = [k for k in kernels() if available() or k.function.__module__ != forest.__name__]
    for number, item in enumerate(made, 1):
        if progress is not None:
            progress(f"compiling kernel {number}/{len(made)}: {item.__name__}")
        item.compiled()
