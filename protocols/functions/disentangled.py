"""Scores of disentangled attention (DeBERTa, arXiv 2006.03654).

A score adds three products: query with key, query with a position's key, and key with a position's
query. Keys and queries of positions are weights. Which of them a pair of tokens uses is public, so
the three products are summed locally before the one exchange that a product takes.
"""

import numpy as np
from numpy.typing import NDArray

from protocols.arithmetic import left_factor, remask, remask_cost, right_factor
from protocols.base.entry import protocol
from protocols.base.lane import Lane
from protocols.base.ring import FRACTION_BITS, Words
from protocols.base.shares import SecretTensor
from protocols.errors import LocalProtocolError
from protocols.kernels.matmul import batched_matmul


@protocol("disentangled")
async def disentangled_scores(
    lane: Lane,
    q: SecretTensor,
    k: SecretTensor,
    keys: SecretTensor,
    queries: SecretTensor,
    index: NDArray[np.int64],
) -> SecretTensor:
    """q_i k_j + q_i keys_r + k_j queries_r for r = index[i, j], with 18 fraction bits.

    Args:
        q, k: (heads, T, size) and (heads, L, size).
        keys, queries: (heads, R, size), of positions.
        index: (T, L), the row of each pair.

    All tensors have 18 fraction bits and are over Z_2^64; the sum must be below 2^(61 - 36).

    Cost: the same as for the product of q and k alone.
    """
    if {t.width for t in (q, k, keys, queries)} != {q.width}:
        raise LocalProtocolError("disentangled attention was given tensors over different rings")
    frac = q.frac + k.frac
    shift = frac - FRACTION_BITS
    shape = (q.shape[0], *index.shape)
    if lane.tracing:
        cost = remask_cost(int(np.prod(shape)), q.width, dealt=True, shift=shift + 1)
        lane.charge("disentangled", cost)
        return lane.blank(shape, q.width - 1 - shift, FRACTION_BITS)
    rows, where = np.unique(index, return_inverse=True)
    where = where.reshape(index.shape)
    work = int(np.prod(shape)) * q.shape[2] + sum(map(_size, (q, k))) * len(rows)

    def product() -> Words:
        part = _product(q, k)
        own, seen = np.arange(index.shape[0])[:, None], np.arange(index.shape[1])
        part += _product(q, keys[:, rows])[:, own, where]
        part += _product(k, queries[:, rows])[:, seen, where]
        return part

    part = await lane.run(work, product)
    return await remask(lane, part, frac=FRACTION_BITS, width=q.width, shift=shift + 1)


def _size(x: SecretTensor) -> int:
    return int(np.prod(x.shape))


def _product(x: SecretTensor, y: SecretTensor) -> Words:
    """This party's part of 2 x y^T."""
    turned = y.transpose(0, 2, 1)
    return np.asarray(batched_matmul(left_factor(x), right_factor(turned)))
