"""Move powers of two between consecutive matrices, without changing a model's function.

Values times 1e-5 with an output matrix times 1e5 are the same model in floating point; in fixed
point the values would have no digits left. Where one linear map feeds another directly, columns of
the first (with their biases) are multiplied by a power of two and rows of the second divided by it,
so that both have about the same length. Pairs balanced within `SLACK` are left alone: that is the
case in every ordinary checkpoint.

Pairs: the values of a key head and its rows of the output matrix; queries and keys of a key head;
each neuron's `up` (not the gate) and its row of `down` in gated layers and, since they scale, ReLU
layers. A side that only meets zeros on the other side is set to zero.
"""

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.configs.architecture import ModelConfig
from models.programs.folding import Matrix, Source, values_of
from protocols.drivers.ops import Heads

SLACK = 2.0**8
"""Up to this ratio of lengths a pair is left alone: at most 4 bits are lost on one side."""
_MOST = 60  # a factor that float32 holds with room
_FIRST = ("qkv", "gate_up", "up", "q_norm")

Vector = NDArray[np.float64]


def rescaled(
    config: ModelConfig, parameters: Iterable[tuple[str, Matrix]]
) -> Iterator[tuple[str, Matrix]]:
    """The same matrices in the same order, balanced pair by pair. They may be changed in place."""
    for name, source in balanced(config, parameters):
        yield name, values_of(source)


def balanced(
    config: ModelConfig, parameters: Iterable[tuple[str, Source]]
) -> Iterator[tuple[str, Source]]:
    """The same matrices in the same order, balanced pair by pair when they are made. Matrices that
    are given as such may be changed in place.
    """
    held: tuple[str, Source] | None = None
    for name, source in parameters:
        if held is not None:
            pair = _Pair(config, held[0], held[1], source)
            yield held[0], _Side(pair, 0)
            yield name, _Side(pair, 1)
            held = None
        elif name.startswith("layers.") and name.rpartition(".")[2] in _FIRST:
            held = name, source
        else:
            yield name, source
    if held is not None:
        yield held


@dataclass(eq=False)
class _Pair:
    """Two matrices, and the powers of two by which they are multiplied.

    Both have to be made to find these; what was not asked for then is kept until it is.
    """

    config: ModelConfig
    name: str
    first: Source
    second: Source
    _factors: tuple[Matrix, Matrix] | None = field(default=None, repr=False)
    _kept: dict[int, Matrix] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def factors(self, *, keep: bool = False) -> tuple[Matrix, Matrix]:
        """The factors of both, found once, also if several threads ask; `keep` the matrices that
        are made for that.
        """
        with self._lock:
            if self._factors is None:
                made = [values_of(self.first), values_of(self.second)]
                self._factors = _factors(self.config, self.name.rpartition(".")[2], *made)
                if keep:
                    self._kept = dict(enumerate(made))
            return self._factors

    def side(self, which: int) -> Matrix:
        """The first or second matrix, balanced."""
        factors = self.factors(keep=True)[which]
        matrix = self._kept.pop(which, None)
        if matrix is None:
            matrix = values_of((self.first, self.second)[which])
        if (factors != 1).any():
            if which and matrix.ndim > 1:  # rows; a bias stays as it is
                matrix[: len(factors)] *= factors[:, None]
            else:
                matrix *= factors
        return matrix


@dataclass(frozen=True, eq=False)
class _Side:
    """One matrix of a pair."""

    pair: _Pair
    which: int

    def values(self) -> Matrix:
        """The balanced matrix."""
        return self.pair.side(self.which)


def untouched(source: Source) -> Source:
    """What a matrix is made of, if balancing leaves it as it is; else the source itself."""
    if not isinstance(source, _Side) or (source.pair.factors()[source.which] != 1).any():
        return source
    return source.pair.second if source.which else source.pair.first


def _factors(
    config: ModelConfig, kind: str, first: Matrix, second: Matrix
) -> tuple[Matrix, Matrix]:
    """A factor for each column of the first matrix and each row of the second."""
    columns = np.ones(first.shape[-1], dtype=np.float32)
    if kind == "q_norm":
        rows = np.ones(len(second), dtype=np.float32)
    else:
        rows = np.ones(len(second) if kind == "qkv" else _inner(kind, first), dtype=np.float32)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        pass  # refused later, when ranges are proven
    elif kind == "q_norm":
        _move(columns, rows, first[:, None], second[:, None])
    elif kind == "qkv":
        _heads(config, first, second, columns, rows)
    else:
        _neurons(config, kind == "gate_up", first, second, columns, rows)
    return columns, rows


def _inner(kind: str, up: Matrix) -> int:
    columns: int = up.shape[1]
    return columns // 2 if kind == "gate_up" else columns


def _heads(config: ModelConfig, qkv: Matrix, output: Matrix, columns: Matrix, rows: Matrix) -> None:
    keys = int(getattr(config, "num_kv_heads", config.num_heads))
    size = qkv.shape[1] // (config.num_heads + 2 * keys)
    heads = Heads(config.num_heads, keys, size)
    share, turned = heads.query // keys, (heads.query + keys) * size
    for head in range(keys):
        queries = slice(head * share * size, (head + 1) * share * size)
        key = slice((heads.query + head) * size, (heads.query + head + 1) * size)
        value = slice(turned + head * size, turned + (head + 1) * size)
        # Not where a norm divides the lengths out, or where positions are multiplied, too.
        if not getattr(config, "qk_norm", False) and not config.positional_scores:
            _move(columns[queries], columns[key], qkv[:, queries].T, qkv[:, key].T)
        _move(columns[value], rows[queries], qkv[:, value].T, output[queries])


def _neurons(
    config: ModelConfig, gated: bool, up: Matrix, down: Matrix, columns: Matrix, rows: Matrix
) -> None:
    inner = len(rows)
    into, out = _lengths(up[:, -inner:].T), _lengths(down[:inner])
    dead = (into == 0) | (out == 0)
    if gated or config.hidden_act == "relu":
        power = _power(into, out).astype(np.int32)
        columns[-inner:] = np.ldexp(np.float32(1), power)
        rows[:] = np.ldexp(np.float32(1), -power)
    columns.reshape(-1, inner)[:, dead] = 0
    rows[dead] = 0


def _move(one: Matrix, two: Matrix, into: Matrix, out: Matrix) -> None:
    """Set factors, so that the longest rows of `into` and of `out` become balanced."""
    lengths = [np.atleast_1d(_lengths(matrix).max(initial=0.0)) for matrix in (into, out)]
    if min(lengths)[0] == 0:
        one[:] = two[:] = 0
        return
    power = float(_power(*lengths)[0])
    one[:], two[:] = 2.0**power, 2.0**-power


def _lengths(rows: Matrix) -> Vector:
    lengths: Vector = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
    return lengths


def _power(into: Vector, out: Vector) -> Vector:
    """Exponents of two by which the first must grow and the second shrink; 0 where they are
    balanced or one is 0.
    """
    live = (into > 0) & (out > 0)
    ratio = np.log2(np.where(live, out, 1.0)) - np.log2(np.where(live, into, 1.0))
    power = np.where(np.abs(ratio) > np.log2(SLACK), np.rint(ratio / 2), 0.0)
    return np.asarray(np.clip(power, -_MOST, _MOST))
