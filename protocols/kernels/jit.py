"""Compile on first use, from explicit signatures, with the on-disk cache; or run the NumPy twins.

Numba is imported when the first kernel is called, so importing `protocols` stays fast. Setting the
environment variable `PUMA_KERNELS=numpy` before the import selects the twins for the whole process.
"""

import os
import threading
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.errors import ConfigError
from protocols.kernels.places import caching

Words: TypeAlias = NDArray[np.uint64]
Bytes: TypeAlias = NDArray[np.uint8]

MODES = ("numba", "numpy")
MODE = os.environ.get("PUMA_KERNELS", "numba")
if MODE not in MODES:
    raise ConfigError(f"PUMA_KERNELS={MODE!r} is not known; use one of {', '.join(MODES)}")

_compile_lock = threading.RLock()
_kernels: "list[Kernel]" = []


class Kernel:
    """A function that Numba compiles at its first call (or when another kernel needs it).

    `signature` is a Numba signature in which `in1`, `in2`, `in3` stand for read-only C-contiguous
    uint64 arrays of that rank: one specialisation then serves both writable and frozen arrays.

    Attributes:
        run: the compiled function (or the twin) itself, once it was called: what is called
            thousands of times a second is called as `name.run(...)`, which takes no Python call.
    """

    def __init__(self, function: FunctionType, signature: str | None, twin: Any) -> None:
        self.function = function
        self.signature = signature
        self.twin = twin
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        numpy = MODE == "numpy" and twin is not None
        self.run: Callable[..., Any] = twin if numpy else self._first

    def __call__(self, *args: Any) -> Any:
        return self.run(*args)

    def _first(self, *args: Any) -> Any:
        self.run = self.compiled()
        return self.run(*args)

    def compiled(self) -> Callable[..., Any]:
        """The Numba dispatcher, whatever the mode; the twins are tested against it."""
        with _compile_lock:
            if not hasattr(self, "_dispatcher"):
                self._dispatcher: Callable[..., Any] = _compile(self.function, self.signature)
            return self._dispatcher


def vector_op(function: Any) -> Any:
    """Decorator: a Numba intrinsic (typing context, argument types) -> (signature, code generator).

    Only kernels can call it; it is built when the first kernel that calls it is compiled.
    """
    return VectorOp(function)


def kernel(signature: str | None = None, twin: Any = None) -> Callable[[Any], Any]:
    """Decorator: a `Kernel` of the function. Without a signature it is a helper of kernels."""

    def wrap(function: Any) -> Any:
        made = Kernel(function, signature, twin)
        if signature is not None:
            _kernels.append(made)
        return made

    return wrap


class VectorOp:
    """A function that emits LLVM instructions into the kernels that call it."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self._intrinsic: Any = None

    def compiled(self) -> Any:
        """The Numba intrinsic."""
        with _compile_lock:
            if self._intrinsic is None:
                from numba.extending import intrinsic

                self._intrinsic = intrinsic(self.function)
            return self._intrinsic


def kernels() -> "list[Kernel]":
    """All kernels with a signature that were imported so far, in order of definition."""
    return list(_kernels)


@cache
def sources_digest() -> str:
    """Eight hexadecimal digits that change with any file of this package and those in it."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def _compile(function: FunctionType, signature: str | None) -> Callable[..., Any]:
    from numba import njit, types

    # Numba resolves callees from the globals: replace our lazy kernels there by dispatchers.
    names = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(callee := names.get(name), Kernel | VectorOp):
            names[name] = callee.compiled()
    ready = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    ready.__module__ = function.__module__
    # The cache only checks a kernel's own file; the name covers the state of its helpers' files.
    ready.__qualname__ = f"{function.__qualname__}_{sources_digest()}"
    if signature is None:
        helper: Callable[..., Any] = njit(nogil=True)(ready)
        return helper
    scope = {
        name: getattr(types, name)
        for name in ("uint8", "int32", "uint32", "uint64", "int64", "float32", "boolean", "void")
    }
    for rank in (1, 2, 3):
        scope[f"in{rank}"] = types.Array(types.uint64, rank, "C", readonly=True)
        scope[f"in{rank}_32"] = types.Array(types.uint32, rank, "C", readonly=True)
        scope[f"in{rank}_8"] = types.Array(types.uint8, rank, "C", readonly=True)
        scope[f"in{rank}_f"] = types.Array(types.float32, rank, "C", readonly=True)
    parsed = eval(signature, {"__builtins__": {}}, scope)  # noqa: S307 - our own literals only
    with caching() as possible:
        made: Callable[..., Any] = njit(parsed, nogil=True, cache=possible)(ready)
    return made
