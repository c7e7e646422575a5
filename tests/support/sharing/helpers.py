"""Running protocols on plain numbers: share inputs, run the three parties, rebuild the result."""

import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocols.base.cost import Cost
from protocols.base.lane import Lane, Settings
from protocols.base.prf import Stream
from protocols.base.ring import Words, decode, encode, signed
from protocols.base.shares import COMPUTING, Role, SecretBits, SecretTensor
from protocols.drivers.lockstep import Outcome, combine, deal, run_parties
from protocols.drivers.trace import trace

A, B, D = Role.EVALUATOR_A, Role.EVALUATOR_B, Role.DEALER
Shared = dict[Role, Any]
Function = Callable[..., Coroutine[Any, Any, Any]]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- sharing ---------------------------------------------------------------------------------------


def words(values: Any) -> Words:
    """Python or NumPy integers of either sign as ring words."""
    return np.asarray(values, dtype=np.int64).view(np.uint64)


def share(values: Any, frac: int = 18, width: int = 64) -> Shared:
    """Share floats."""
    return deal(encode(np.asarray(values, dtype=np.float64), frac, width), width, frac)


def share_ints(values: Any, width: int = 64, frac: int = 0) -> Shared:
    """Share integers."""
    return deal(words(values), width, frac)


def share_bits(values: Any) -> Shared:
    """Share bits."""
    bits = np.asarray(values, dtype=np.uint8)
    stream = Stream(os.urandom(16))
    one, two = stream.bits(bits.shape), stream.bits(bits.shape)
    public = bits ^ one ^ two
    return {
        D: SecretBits(D, one, two),
        A: SecretBits(A, public, one),
        B: SecretBits(B, public, two),
    }


def combine_bits(shares: Shared) -> NDArray[np.uint8]:
    """Rebuild bits from shares, on which the parties must agree."""
    dealer, left, right = (shares[role] for role in COMPUTING)
    np.testing.assert_array_equal(left.a, right.a)
    np.testing.assert_array_equal(left.b, dealer.a)
    np.testing.assert_array_equal(right.b, dealer.b)
    value: NDArray[np.uint8] = left.a ^ left.b ^ right.b
    assert value.max(initial=0) <= 1
    return value


# -- running ---------------------------------------------------------------------------------------


def run(function: Function, *inputs: Any, settings: Settings | None = None) -> Outcome:
    """Run `function(lane, *inputs)` at the three computing parties. Inputs that are shared (a dict
    by role) reach each party as its own share.
    """

    def program(role: Role) -> Callable[[Lane], Coroutine[Any, Any, Any]]:
        return lambda lane: function(lane, *(own(value, role) for value in inputs))

    return run_parties({role: program(role) for role in COMPUTING}, settings)


def own(value: Any, role: Role) -> Any:
    """A party's part of an input; containers are searched."""
    if isinstance(value, dict):
        return value[role]
    if isinstance(value, list):
        return [own(item, role) for item in value]
    return value


def ints(function: Function, *inputs: Any, settings: Settings | None = None) -> NDArray[np.int64]:
    """The result of `run` as signed integers."""
    results = run(function, *inputs, settings=settings).results
    return signed(combine(results), results[A].width)


def floats(
    function: Function, *inputs: Any, settings: Settings | None = None
) -> NDArray[np.float64]:
    """The result of `run` as floats."""
    results = run(function, *inputs, settings=settings).results
    return decode(combine(results), results[A].frac, results[A].width)


def bits(function: Function, *inputs: Any, settings: Settings | None = None) -> NDArray[np.uint8]:
    """The result of `run` as bits."""
    return combine_bits(run(function, *inputs, settings=settings).results)


def local(shared: Shared, function: Callable[[SecretTensor], SecretTensor]) -> Shared:
    """Apply a local operation at every party."""
    return {role: function(value) for role, value in shared.items()}


def value_of(shared: Shared) -> NDArray[np.float64]:
    """Floats of a shared tensor."""
    return decode(combine(shared), shared[A].frac, shared[A].width)


# -- tracing ---------------------------------------------------------------------------------------


def blank(value: Any) -> Any:
    """A shared input as a tracing lane sees it: shape, width and fraction bits alone."""
    if isinstance(value, list):
        return [blank(item) for item in value]
    if not isinstance(value, dict):
        return value
    tensor = value[A]
    return replace(tensor, role=Role.TRACE, a=np.zeros_like(tensor.a), b=np.zeros_like(tensor.b))


def declared(function: Function, *inputs: Any, settings: Settings | None = None) -> Cost:
    """The cost that `function(lane, *inputs)` declares."""
    blanks = [blank(value) for value in inputs]
    return trace(lambda lane: function(lane, *blanks), settings)[0]
