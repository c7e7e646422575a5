"""Kernels on shared bits: one-hot digits of a comparison, sums of products of masked bits, and the
tables of `protocols.functions.histogram`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocols.kernels.jit import Words, kernel, vector_op

Counts: TypeAlias = NDArray[np.uint32]

_ONE = np.uint64(1)
DIGIT_BITS = 4


@vector_op
def _parity(typing: Any, word: Any) -> tuple[Any, Callable[..., Any]]:
    """1 if an odd number of the word's bits is set, else 0; one instruction counts them."""
    from numba import types

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = builder.ctpop(args[0])
        return builder.and_(count, count.type(1))

    return types.uint64(types.uint64), codegen


def onehot_digits_numpy(values: Words, digits: int) -> Words:
    """NumPy twin of `onehot_digits`."""
    shifts = np.arange(digits - 1, -1, -1, dtype=np.uint64) * np.uint64(DIGIT_BITS)
    return _ONE << ((values[:, None] >> shifts) & np.uint64(15))


@kernel("uint64[:,::1](in1, int64)", twin=onehot_digits_numpy)
def onehot_digits(values: Words, digits: int) -> Words:
    """The 16-entry one-hot of every 4-bit digit, most significant first: (n,) -> (n, digits)."""
    out = np.empty((values.size, digits), dtype=np.uint64)
    for i in range(values.size):
        for j in range(digits):
            digit = (values[i] >> np.uint64(4 * (digits - 1 - j))) & np.uint64(15)
            out[i, j] = np.uint64(1) << digit
    return out


def digit_relations_numpy(shares: Words, publics: Words) -> Words:
    """NumPy twin of `digit_relations`."""
    _n, digits = shares.shape
    place = np.arange(16, dtype=np.uint64)
    bits = (shares[:, :, None] >> place) & _ONE  # (n, digits, 16)
    out = np.zeros(publics.shape, dtype=np.uint64)
    sign = np.bitwise_xor.reduce(bits[:, 0, 8:], axis=-1)
    for k in range(publics.shape[1]):
        for j in range(digits):
            public = (publics[:, k] >> np.uint64(DIGIT_BITS * (digits - 1 - j))) & np.uint64(15)
            low = np.uint64(7) if j == 0 else np.uint64(15)
            above = (place & low) > (public & low)[:, None]
            equal = (place & low) == (public & low)[:, None]
            greater = np.bitwise_xor.reduce(np.where(above, bits[:, j], 0), axis=-1)
            same = np.bitwise_xor.reduce(np.where(equal, bits[:, j], 0), axis=-1)
            out[:, k] |= greater << np.uint64(j)
            if j < digits - 1:
                out[:, k] |= same << np.uint64(digits + j)
        out[:, k] |= sign << np.uint64(2 * digits - 1)
    return out


@kernel("uint64[:,::1](in2, in2)", twin=digit_relations_numpy)
def digit_relations(shares: Words, publics: Words) -> Words:
    """XOR shares of how a dealt number's digits compare with those of public numbers.

    Args:
        shares: (n, digits) XOR shares of the 16-entry one-hots, most significant digit first.
        publics: (n, K) public numbers of 4 * digits bits.

    Returns:
        (n, K) words: bit j is [dealt digit j > public digit j], bit digits + j is [they are equal]
        (not for the last digit), bit 2 * digits - 1 is the top bit of the dealt number. That top
        bit is left out of digit 0.
    """
    n, digits = shares.shape
    count = publics.shape[1]
    out = np.empty((n, count), dtype=np.uint64)
    for i in range(n):
        top = shares[i, 0]
        folded = (top ^ (top >> np.uint64(8))) & np.uint64(0xFF)
        sign = _parity(top >> np.uint64(8))
        for k in range(count):
            public = publics[i, k]
            word = sign << np.uint64(2 * digits - 1)
            for j in range(digits):
                digit = (public >> np.uint64(4 * (digits - 1 - j))) & np.uint64(15)
                share = shares[i, j]
                if j == 0:
                    digit &= np.uint64(7)
                    share = folded
                equal = (share >> digit) & np.uint64(1)
                greater = _parity(share >> (digit + np.uint64(1)))
                word |= greater << np.uint64(j)
                if j < digits - 1:
                    word |= equal << np.uint64(digits + j)
            out[i, k] = word
    return out


def mask_products_numpy(masks: Words, subsets: Words, fields: int) -> Words:
    """NumPy twin of `mask_products`."""
    out = np.zeros((fields, masks.size), dtype=np.uint64)
    for index, subset in enumerate(subsets):
        bit = ((masks & subset) == subset).astype(np.uint64)
        out[index // 64] |= bit << np.uint64(index % 64)
    return out


@kernel("uint64[:,::1](in1, in1, int64)", twin=mask_products_numpy)
def mask_products(masks: Words, subsets: Words, fields: int) -> Words:
    """For each mask word (n,) the bits [all bits of the subset are set]: (fields, n), 64 a word."""
    out = np.zeros((fields, masks.size), dtype=np.uint64)
    for s in range(subsets.size):
        subset = subsets[s]
        row = out[s >> 6]
        place = np.uint64(s & 63)
        for i in range(masks.size):
            hit = np.uint64(1) if (masks[i] & subset) == subset else np.uint64(0)
            row[i] |= hit << place
    return out


def expand_products_numpy(
    opened: Words, mask: Words, dealt: Words, rows: Words, leads: bool
) -> Words:
    """NumPy twin of `expand_products`."""
    out = np.zeros(opened.size, dtype=np.uint64)
    for need, kind, index, output in rows:
        if kind == 0:
            term = np.full(opened.size, np.uint64(leads))
        elif kind == 1:
            term = (mask >> index) & _ONE
        else:
            term = (dealt[int(index) // 64] >> (index % np.uint64(64))) & _ONE
        hit = (opened & need) == need
        out ^= np.where(hit, term, np.uint64(0)) << output
    return out


@kernel("uint64[::1](in1, in1, in2, in2, boolean)", twin=expand_products_numpy)
def expand_products(opened: Words, mask: Words, dealt: Words, rows: Words, leads: bool) -> Words:
    """An evaluator's XOR shares of a `protocols.boolean.Circuit`'s outputs, one word per element.

    Args:
        opened: (n,) public words o. mask: (n,) XOR shares of r. dealt: (fields, n) XOR shares of
            the
            products of mask bits. rows: the circuit's table. leads: this evaluator adds the public
            terms.
    """
    out = np.zeros(opened.size, dtype=np.uint64)
    for t in range(rows.shape[0]):
        need, kind = rows[t, 0], rows[t, 1]
        index, output = rows[t, 2], rows[t, 3]
        if kind == 0 and not leads:
            continue
        source = mask
        place = index
        if kind == 2:
            source = dealt[index >> np.uint64(6)]
            place = index & np.uint64(63)
        for i in range(opened.size):
            term = np.uint64(1) if kind == 0 else (source[i] >> place) & np.uint64(1)
            hit = np.uint64(1) if (opened[i] & need) == need else np.uint64(0)
            out[i] ^= (term & hit) << output
    return out


def look_up_products_numpy(
    opened: Words, mask: Words, dealt: Words, table: Words, inputs: int, leads: bool
) -> Words:
    """NumPy twin of `look_up_products`."""
    known = np.uint64(leads) | mask << _ONE | dealt << np.uint64(1 + inputs)
    out = np.zeros(opened.size, dtype=np.uint64)
    for output in range(table.shape[1]):
        bit = np.bitwise_count(known & table[opened.astype(np.intp), output]) & np.uint8(1)
        out |= bit.astype(np.uint64) << np.uint64(output)
    return out


@kernel("uint64[::1](in1, in1, in1, in2, uint64, boolean)", twin=look_up_products_numpy)
def look_up_products(
    opened: Words, mask: Words, dealt: Words, table: Words, inputs: Any, leads: bool
) -> Words:
    """As `expand_products`, for products dealt in one word (n,), with a table (2^inputs, outputs)
    of the terms of each public word: bit 0 is the constant, then come the bits of the mask, then
    those of the dealt word.
    """
    out = np.empty(opened.size, dtype=np.uint64)
    constant, place = np.uint64(1) if leads else np.uint64(0), np.uint64(1) + inputs
    for i in range(opened.size):
        known = constant | mask[i] << np.uint64(1) | dealt[i] << place
        row, found = opened[i], np.uint64(0)
        for output in range(table.shape[1]):
            found |= _parity(known & table[row, output]) << np.uint64(output)
        out[i] = found
    return out


def turned_onehots_numpy(masks: Words, turn: Words, words: int) -> Words:
    """NumPy twin of `turned_onehots`."""
    rows, asked = masks.shape
    tables = np.zeros((rows, asked, words), dtype=np.uint64)
    places = np.arange(asked, dtype=np.uint64)
    lower = ((places - turn[:, None]) & np.uint64(asked - 1)) < np.uint64(asked // 2)
    bits = (_ONE << (masks & np.uint64(63))) * lower
    at = (masks >> np.uint64(6)).astype(np.intp)
    np.put_along_axis(tables, at[..., None], bits[..., None], axis=2)
    return tables


@kernel("uint64[:, :, ::1](in2, in1, int64)", twin=turned_onehots_numpy)
def turned_onehots(masks: Words, turn: Words, words: int) -> Words:
    """The one-hots of masks (rows, asked) below 64 `words`, in the half of each row that begins at
    its `turn`, around the end; zeros in the other. asked is a power of two.

    Returns: (rows, asked, words).
    """
    rows, asked = masks.shape
    out = np.zeros((rows, asked, words), dtype=np.uint64)
    for row in range(rows):
        first = np.int64(turn[row])
        for i in range(asked // 2):
            place = (first + i) & (asked - 1)
            mask = masks[row, place]
            out[row, place, np.int64(mask >> np.uint64(6))] = _ONE << (mask & np.uint64(63))
    return out


def answer_changes_numpy(tables: Words, opened: Words) -> Words:
    """NumPy twin of `answer_changes`."""
    word = (opened >> np.uint64(6)).astype(np.intp)[..., None]
    chosen = np.take_along_axis(tables, word, axis=2)[..., 0]
    answer = (chosen >> (opened & np.uint64(63))) & _ONE
    places = np.arange(opened.shape[1], dtype=np.uint64)
    after = (places + _ONE) & np.uint64(opened.shape[1] - 1)
    found: Words = np.bitwise_xor.reduce(answer * (places ^ after), axis=1)
    return found


@kernel("uint64[::1](in3, in2)", twin=answer_changes_numpy)
def answer_changes(tables: Words, opened: Words) -> Words:
    """For each row the XOR of the numbers of the places whose answer is not that of the one before,
    around the end. A place's answer is the bit of its table (XOR-shared) that was opened.

    tables (rows, asked, words); opened (rows, asked), below 64 `words`; asked is a power of two.
    """
    rows, asked = opened.shape
    out = np.zeros(rows, dtype=np.uint64)
    for row in range(rows):
        found = np.uint64(0)
        for place in range(asked):
            bit = opened[row, place]
            word = tables[row, place, np.int64(bit >> np.uint64(6))]
            answer = np.uint64(0) - ((word >> (bit & np.uint64(63))) & _ONE)
            found ^= answer & np.uint64(place ^ ((place + 1) & (asked - 1)))
        out[row] = found
    return out


def half_turns_numpy(counts: Counts) -> Words:
    """NumPy twin of `half_turns`."""
    total = np.cumsum(counts, axis=1, dtype=np.uint32)
    half = counts.shape[1] // 2
    after = total[:, half::2] - total[:, :half:2]
    return np.concatenate([after, total[:, -1:] - after], axis=1).astype(np.uint64)


@kernel("uint64[:, ::1](in2_32)", twin=half_turns_numpy)
def half_turns(counts: Counts) -> Words:
    """For every second place, the sum modulo 2^32 of the half of the row after it, around the end:
    (rows, size) -> (rows, size / 2).
    """
    rows, size = counts.shape
    half = size // 2
    out = np.empty((rows, half), dtype=np.uint64)
    total = np.empty(size, dtype=np.uint32)
    for row in range(rows):
        running = np.uint32(0)
        for i in range(size):
            running += counts[row, i]
            total[i] = running
        for i in range(half // 2):
            after = np.uint32(total[half + 2 * i] - total[2 * i])
            out[row, i] = after
            out[row, half // 2 + i] = np.uint32(running - after)
    return out
