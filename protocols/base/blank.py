"""Arrays that have a shape and no content, for `TRACE`.

Every element is the same zero in memory, and what is computed from such an array is such an array
again: nothing is allocated or calculated, however large the shape is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, Unpack

import numpy as np

_ZEROS = bytes(16)  # of any type
Known: TypeAlias = Callable[..., tuple[int, ...]]


class _Options(TypedDict, total=False):
    """Of a ufunc; those that shapes and types depend on."""

    axis: Any
    keepdims: Any
    dtype: Any
    initial: Any
    where: Any
    casting: Any
    order: Any
    subok: Any


class Blank(np.ndarray[tuple[int, ...], np.dtype[Any]]):
    """See the module docstring; made by `blank`.

    Operations that are not known here see an array of zeros and give an ordinary one.
    """

    def __array_ufunc__(
        self,
        ufunc: np.ufunc,
        method: str,
        *inputs: Any,
        out: Any = None,
        **options: Unpack[_Options],
    ) -> Any:
        """Shape and type of the result, without its content."""
        if method == "__call__" and ufunc.signature is None and ufunc.nout == 1:
            shapes = {each.shape for each in inputs if isinstance(each, np.ndarray)}
            shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
            kind = ufunc(*(_one_of(each) for each in inputs), **options).dtype
        elif method == "reduce":
            first, axis = inputs[0], options.get("axis", 0)
            shape = _reduced(first.shape, axis, keep=bool(options.get("keepdims")))
            kind = ufunc.reduce(_one_of(first)[None], dtype=options.get("dtype")).dtype
        else:
            plain = [_plain(each) for each in inputs]
            return getattr(ufunc, method)(*plain, out=out, **options)
        return blank(shape, kind) if out is None else out[0]

    def __array_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        args: Iterable[Any],
        options: Mapping[str, Any],
    ) -> Any:
        """As for `__array_ufunc__`, for functions that `_KNOWN` lists."""
        del types
        if function in _KNOWN:
            return blank(_KNOWN[function](*args, **options), self.dtype)
        return function(*(_plain(each) for each in args), **options)

    def __getitem__(self, index: Any) -> Any:
        """Indexed by arrays, the result is blank as well."""
        items = index if isinstance(index, tuple) else (index,)
        shape = _picked(self.shape, items)
        return super().__getitem__(index) if shape is None else blank(shape, self.dtype)

    def copy(self, order: Any = "C") -> Any:
        """The same array: there is nothing to write to."""
        del order
        return self


def blank(shape: tuple[int, ...], kind: Any = np.uint64) -> Blank:
    """An array of zeros that takes no memory and cannot be written to."""
    return Blank(shape, kind, _ZEROS, strides=(0,) * len(shape))


def _plain(item: Any) -> Any:
    """Blank arrays as ordinary ones, also in a sequence."""
    if isinstance(item, list | tuple):
        return type(item)(_plain(each) for each in item)
    return item.view(np.ndarray) if isinstance(item, Blank) else item


def _one_of(item: Any) -> Any:
    """A scalar of the same type; Python's numbers as they are."""
    return item.dtype.type(0) if isinstance(item, np.ndarray) else item


def _reduced(shape: tuple[int, ...], axis: Any, *, keep: bool) -> tuple[int, ...]:
    """The shape after a reduction over one axis, several, or all (None)."""
    axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {each % len(shape) for each in axes}
    left = [(1 if i in gone else size) for i, size in enumerate(shape) if keep or i not in gone]
    return tuple(left)


def _picked(shape: tuple[int, ...], items: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape of what slices, then arrays of integers, pick; None for other ways to index."""
    slices = 0
    if items and items[0] is ...:
        items = (slice(None),) * (len(shape) - len(items) + 1) + items[1:]
    while slices < len(items) and isinstance(items[slices], slice):
        slices += 1
    arrays = items[slices:]
    if not arrays or not all(isinstance(e, np.ndarray) and e.dtype.kind in "iu" for e in arrays):
        return None
    left = [len(range(*cut.indices(n))) for cut, n in zip(items[:slices], shape, strict=False)]
    return (*left, *np.broadcast_shapes(*(each.shape for each in arrays)), *shape[len(items) :])


def _concatenated(arrays: Sequence[Any], axis: int | None = 0) -> tuple[int, ...]:
    if axis is None:
        return (sum(each.size for each in arrays),)
    shape = list(arrays[0].shape)
    shape[axis] = sum(each.shape[axis] for each in arrays)
    return tuple(shape)


def _stacked(arrays: Sequence[Any], axis: int = 0) -> tuple[int, ...]:
    shape = list(arrays[0].shape)
    shape.insert(axis % (len(shape) + 1), len(arrays))
    return tuple(shape)


_KNOWN: dict[Callable[..., Any], Known] = {
    np.concatenate: _concatenated,
    np.stack: _stacked,
    np.broadcast_to: lambda _, shape, **__: shape if isinstance(shape, tuple) else (shape,),
    np.zeros_like: lambda like, **_: like.shape,
}
