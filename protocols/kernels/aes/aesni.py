"""AES-128 with the processor's own instructions, inside Numba kernels.

A kernel that hashes in registers needs no pass through memory per tree level and holds no GIL.
Used where LLVM reports the instructions (`available`); otherwise OpenSSL does the work, with the
same results bit for bit.
"""

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from protocols.kernels.aes.fixed_key import fixed_key
from protocols.kernels.jit import MODE, Words, vector_op
from protocols.kernels.simd import builder_tools, host_features, pointer

_ROUNDS = 10
KEY_WORDS = 2 * (_ROUNDS + 1)
GROUP_LIMIT = 4  # scratch arrays have room for this many blocks after their last


@cache
def available() -> bool:
    """Whether kernels may use AES instructions here."""
    intel = platform.machine().lower() in ("x86_64", "amd64")
    return MODE == "numba" and intel and "aes" in host_features()


def _group() -> int:
    """Blocks in one vector: VAES works on two or four at once."""
    features = host_features()
    if "vaes" not in features:
        return 1
    return 4 if "avx512f" in features else 2


@cache
def _sbox() -> bytes:
    """The AES substitution box (FIPS 197, 5.1.1): inverse in GF(2^8), then an affine map."""
    box = bytearray(256)
    p = q = 1
    while True:
        p ^= (p << 1 ^ (0x11B if p & 0x80 else 0)) & 0x1FF  # times 3, a generator
        for shift in (1, 2, 4):
            q ^= q << shift & 0xFF
        if q & 0x80:
            q ^= 0x09  # divided by 3
        turned = q * 0x101
        box[p] = (q ^ turned >> 7 ^ turned >> 6 ^ turned >> 5 ^ turned >> 4) & 0xFF ^ 0x63
        if p == 1:
            break
    box[0] = 0x63
    return bytes(box)


def _schedule(key: bytes) -> bytes:
    """The 11 round keys of an AES-128 key (FIPS 197, 5.2)."""
    box, constant = _sbox(), 1
    columns = [key[i : i + 4] for i in range(0, 16, 4)]
    while len(columns) < 4 * (_ROUNDS + 1):
        last = columns[-1]
        if len(columns) % 4 == 0:
            last = bytes(box[value] for value in last[1:] + last[:1])
            last = bytes([last[0] ^ constant]) + last[1:]
            constant = constant << 1 ^ (0x11B if constant & 0x80 else 0)
        columns.append(bytes(a ^ b for a, b in zip(columns[-4], last, strict=True)))
    return b"".join(columns)


@cache
def round_keys(count: int) -> Words:
    """Round keys of the first `count` fixed keys: (count * KEY_WORDS,) words."""
    return np.frombuffer(b"".join(_schedule(fixed_key(i)) for i in range(count)), dtype=np.uint64)


class _Emitter:
    """Code generation for AES over vectors of one, two or four blocks."""

    def __init__(self, builder: Any) -> None:
        from llvmlite import ir

        self.ir, self.builder, self.group = ir, builder, _group()
        self.word = ir.IntType(64)
        self.block = ir.VectorType(self.word, 2)
        self.vector = ir.VectorType(self.word, 2 * self.group)
        self.suffix = {1: "", 2: ".256", 4: ".512"}[self.group]

    def shuffle(self, value: Any, order: list[int]) -> Any:
        indices = self.ir.Constant(self.ir.VectorType(self.ir.IntType(32), len(order)), order)
        return self.builder.shuffle_vector(value, self.ir.Constant(value.type, None), indices)

    def spread(self, address: Any) -> Any:
        """A vector that repeats the block at an address."""
        return self.shuffle(self.builder.load(address, align=8), [0, 1] * self.group)

    def constant(self, even: int, odd: int) -> Any:
        return self.ir.Constant(self.vector, [even, odd] * self.group)

    def round(self, state: Any, key: Any, last: bool) -> Any:
        cgutils = builder_tools()

        name = f"llvm.x86.aesni.aesenc{'last' if last else ''}{self.suffix}"
        kind = self.ir.FunctionType(self.vector, [self.vector, self.vector])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [state, key])

    def encrypt(self, states: list[Any], keys: list[Any]) -> list[Any]:
        """Encrypt several states side by side, to hide the latency of a round."""
        states = [self.builder.xor(state, keys[0]) for state in states]
        for key in keys[1:-1]:
            states = [self.round(state, key, last=False) for state in states]
        return [self.round(state, keys[-1], last=True) for state in states]

    def mmo(self, seeds: Any, keys: list[Any]) -> Any:
        (state,) = self.encrypt([seeds], keys)
        return self.builder.xor(state, seeds)

    def split(self, nodes: Any) -> tuple[Any, Any]:
        """Nodes -> (seeds, all ones in the blocks whose control bit is set)."""
        seeds = self.builder.and_(nodes, self.constant(-4, -1))
        bits = self.builder.and_(nodes, self.constant(1, 0))
        both = self.shuffle(bits, [2 * (i // 2) for i in range(2 * self.group)])
        return seeds, self.builder.sub(self.ir.Constant(self.vector, None), both)


def make_hash(count: int, add: bool) -> Any:
    """An op that hashes nodes under `count` keys and applies a correction by XOR or addition."""

    def hash_nodes(
        typing: Any, keys: Any, key_at: Any, nodes: Any, nodes_at: Any, blocks: Any,
        out: Any, out_at: Any, out_step: Any, fix: Any, fix_at: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """Positions count words. Key i's results go to out_at + i * out_step, its correction is at
        fix_at + 2 i. Up to GROUP_LIMIT - 1 blocks after the last are overwritten."""
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            emit = _Emitter(builder)
            add_, mul, const = builder.add, builder.mul, emit.ir.Constant
            _, key0, _, node0, total, _, out0, step, _, fix0 = args

            def at(which: int, position: Any, target: Any) -> Any:
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, target)

            def number(value: int) -> Any:
                return const(emit.word, value)

            schedules = [
                [
                    emit.spread(at(0, add_(key0, number(i * KEY_WORDS + 2 * r)), emit.block))
                    for r in range(_ROUNDS + 1)
                ]
                for i in range(count)
            ]
            fixes = [
                emit.spread(at(8, add_(fix0, number(2 * i)), emit.block)) for i in range(count)
            ]
            with cgutils.for_range_slice(builder, number(0), total, number(emit.group)) as (i, _n):
                shift = mul(i, number(2))
                source = at(2, add_(node0, shift), emit.vector)
                seeds, active = emit.split(builder.load(source, align=8))
                for k in range(count):
                    hashed = emit.mmo(seeds, schedules[k])
                    applied = builder.and_(fixes[k], active)
                    result = (add_ if add else builder.xor)(hashed, applied)
                    place = add_(add_(out0, shift), mul(step, number(k)))
                    builder.store(result, at(5, place, emit.vector), align=8)
            return context.get_dummy_value()

        n = types.intp
        return types.void(keys, n, nodes, n, n, out, n, n, fix, n), codegen

    return vector_op(hash_nodes)


def make_tally(count: int, lane_bits: int) -> Any:
    """An op that hashes nodes under `count` keys (an even number), applies a correction lane by
    lane, and adds the results of each node, one after the other, to an array of bytes."""

    def tally(
        typing: Any, keys: Any, key_at: Any, nodes: Any, blocks: Any,
        fix: Any, fix_at: Any, out: Any, out_at: Any,
    ) -> tuple[Any, Callable[..., Any]]:  # fmt: skip
        """`blocks` is a multiple of GROUP_LIMIT; out_at counts bytes and need not be aligned. Node
        j's results go to out_at + 16 j count; key i's correction is at fix_at + 2 i."""
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()
            emit = _Emitter(builder)
            ir, add_ = emit.ir, builder.add
            _, key0, _, total, _, fix0, _, out0 = args
            lanes = ir.VectorType(ir.IntType(lane_bits), emit.vector.count * 64 // lane_bits)
            pair = ir.VectorType(ir.IntType(lane_bits), 256 // lane_bits)

            def at(which: int, position: Any, target: Any) -> Any:
                kind = signature.args[which]
                return pointer(context, builder, kind, args[which], position, target)

            def number(value: int) -> Any:
                return ir.Constant(emit.word, value)

            def spread(which: int, start: Any, position: int) -> Any:
                return emit.spread(at(which, add_(start, number(position)), emit.block))

            schedules = [
                [spread(0, key0, i * KEY_WORDS + 2 * r) for r in range(_ROUNDS + 1)]
                for i in range(count)
            ]
            fixes = [spread(4, fix0, 2 * i) for i in range(count)]
            step = number(emit.group)
            with cgutils.for_range_slice(builder, number(0), total, step) as (i, _n):
                source = at(2, builder.mul(i, number(2)), emit.vector)
                seeds, active = emit.split(builder.load(source, align=8))
                shares = []
                for k in range(count):
                    applied = builder.and_(fixes[k], active)
                    parts = (emit.mmo(seeds, schedules[k]), applied)
                    shares.append(add_(*(builder.bitcast(part, lanes) for part in parts)))
                words = [builder.bitcast(share, emit.vector) for share in shares]
                place = add_(out0, builder.mul(i, number(16 * count)))
                for node in range(emit.group):
                    for k in range(0, count, 2):
                        halves = [2 * node, 2 * node + 1]
                        order = halves + [2 * emit.group + half for half in halves]
                        indices = ir.Constant(ir.VectorType(ir.IntType(32), 4), order)
                        both = builder.shuffle_vector(words[k], words[k + 1], indices)
                        shift = number(16 * (node * count + k))
                        spot = at(6, add_(place, shift), pair)
                        whole = add_(builder.load(spot, align=1), builder.bitcast(both, pair))
                        builder.store(whole, spot, align=1)
            return context.get_dummy_value()

        n = types.intp
        return types.void(keys, n, nodes, n, fix, n, out, n), codegen

    return vector_op(tally)


COUNTER_SLACK = 2 * 4 * GROUP_LIMIT  # words that `make_counter` may write after the last
_ABREAST = 4  # vectors


def make_counter() -> Any:
    """An op that encrypts the block numbers first, first + 1 ...: AES in counter mode."""

    def counter(
        typing: Any, keys: Any, first: Any, blocks: Any, out: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """keys: the schedule, KEY_WORDS words; `blocks` blocks go to out, up to COUNTER_SLACK words
        after them are overwritten. The number is the block's last eight bytes, big-endian."""
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            emit = _Emitter(builder)
            _, start, total, _ = args
            const, step = emit.ir.Constant, emit.group * _ABREAST

            def at(which: int, position: Any, kind: Any) -> Any:
                return pointer(context, builder, signature.args[which], args[which], position, kind)

            def numbered(block: Any) -> Any:
                """A vector of counters from `block` on."""
                made = const(emit.vector, [0] * (2 * emit.group))
                for lane in range(emit.group):
                    number = builder.add(block, const(emit.word, lane))
                    place = const(emit.ir.IntType(32), 2 * lane + 1)
                    made = builder.insert_element(made, builder.bswap(number), place)
                return made

            keys_now = [
                emit.spread(at(0, const(emit.word, 2 * r), emit.block)) for r in range(_ROUNDS + 1)
            ]
            zero = const(emit.word, 0)
            with cgutils.for_range_slice(builder, zero, total, const(emit.word, step)) as (i, _n):
                offsets = [
                    builder.add(i, const(emit.word, emit.group * j)) for j in range(_ABREAST)
                ]
                states = [numbered(builder.add(start, offset)) for offset in offsets]
                for offset, state in zip(offsets, emit.encrypt(states, keys_now), strict=True):
                    place = builder.mul(offset, const(emit.word, 2))
                    builder.store(state, at(3, place, emit.vector), align=8)
            return context.get_dummy_value()

        n = types.intp
        return types.void(keys, n, n, out), codegen

    return vector_op(counter)


def make_schedule() -> Any:
    """An op that expands a key of two words to its schedule of KEY_WORDS words."""

    def schedule(typing: Any, key: Any, out: Any) -> tuple[Any, Callable[..., Any]]:
        from llvmlite import ir
        from numba import types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            cgutils = builder_tools()

            byte, number = ir.IntType(8), ir.IntType(32)
            block, quarters = ir.VectorType(ir.IntType(64), 2), ir.VectorType(number, 4)
            kind = ir.FunctionType(block, [block, byte])
            name = "llvm.x86.aesni.aeskeygenassist"
            assist = cgutils.get_or_insert_function(builder.module, kind, name)

            def at(which: int, position: int) -> Any:
                place = ir.Constant(ir.IntType(64), position)
                return pointer(context, builder, signature.args[which], args[which], place, block)

            def pick(value: Any, order: list[int]) -> Any:
                zeros = ir.Constant(quarters, [0] * 4)
                return builder.shuffle_vector(value, zeros, ir.Constant(quarters, order))

            now, constant = builder.load(at(0, 0), align=8), 1
            builder.store(now, at(1, 0), align=8)
            for index in range(1, _ROUNDS + 1):
                helped = builder.call(assist, [now, ir.Constant(byte, constant)])
                constant = constant << 1 ^ (0x11B if constant & 0x80 else 0)
                total = moved = builder.bitcast(now, quarters)
                for _ in range(3):  # every column is the sum of those before it
                    moved = pick(moved, [4, 0, 1, 2])
                    total = builder.xor(total, moved)
                total = builder.xor(total, pick(builder.bitcast(helped, quarters), [3] * 4))
                now = builder.bitcast(total, block)
                builder.store(now, at(1, 2 * index), align=8)
            return context.get_dummy_value()

        return types.void(key, out), codegen

    return vector_op(schedule)
