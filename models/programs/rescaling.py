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

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from models.configs.architecture import ModelConfig
from models.programs.folding import Matrix
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
    held: tuple[str, Matrix] | None = None
    for name, matrix in parameters:
        if held is not None:
            # Before the caller gets either one, because it may copy it.
            second = _pair(config, *held, matrix)
            yield held
            yield name, second
            held = None
        elif name.startswith("layers.") and name.rpartition(".")[2] in _FIRST:
            held = name, matrix
        else:
            yield name, matrix
    if held is not None:
        yield held


def _pair(config: ModelConfig, name: str, first: Matrix, second: Matrix) -> Matrix:
    """Balance two matrices in place; returns the second."""
    kind = name.rpartition(".")[2]
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return second  # refused later, when ranges are proven
    if kind == "q_norm":
        _move(first[:, None], second[:, None], first[:, None], second[:, None])
    elif kind == "qkv":
        _heads(config, first, second)
    else:
        _neurons(config, kind == "gate_up", first, second)
    return second


def _heads(config: ModelConfig, qkv: Matrix, output: Matrix) -> None:
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
            _move(qkv[:, queries], qkv[:, key], qkv[:, queries].T, qkv[:, key].T)
        _move(qkv[:, value], output[queries], qkv[:, value].T, output[queries])


def _neurons(config: ModelConfig, gated: bool, up: Matrix, down: Matrix) -> None:
    inner = up.shape[1] // (2 if gated else 1)
    linear, rows = up[:, -inner:], down[:inner]
    into, out = _lengths(linear.T), _lengths(rows)
    dead = (into == 0) | (out == 0)
    if dead.any():
        up.reshape(len(up), -1, inner)[:, :, dead] = 0
        rows[dead] = 0
    if gated or config.hidden_act == "relu":
        power = _power(into, out)
        if power.any():
            linear *= np.ldexp(np.float32(1), power.astype(np.int32))
            rows *= np.ldexp(np.float32(1), -power.astype(np.int32))[:, None]


def _move(one: Matrix, two: Matrix, into: Matrix, out: Matrix) -> None:
    """Balance the longest rows of `into`, a view of `one`, and of `out`, a view of `two`."""
    lengths = [np.atleast_1d(_lengths(rows).max(initial=0.0)) for rows in (into, out)]
    if min(lengths)[0] == 0:
        one *= 0
        two *= 0
        return
    power = float(_power(*lengths)[0])
    if power:
        one *= np.float32(2.0**power)
        two *= np.float32(2.0**-power)


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
