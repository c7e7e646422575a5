"""Running protocols on plain numbers: share inputs, run the three parties, rebuild the result."""

import os
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibrate import calibrate
from models.config import LlamaConfig
from models.llama import Cache, forward, parameters_of
from models.plan import Plan
from models.sharing import hold_parameter, mask_parameter
from protocols.cost import Cost
from protocols.embedding import request_rows, reveal, revealed
from protocols.lane import Lane, Settings
from protocols.lockstep import Outcome, combine, deal, run_parties
from protocols.ops import ARGMAX_WIDTH, Secure
from protocols.prf import Stream
from protocols.ring import FRACTION_BITS, RESIDUAL_BITS, Words, decode, encode, signed
from protocols.shares import COMPUTING, Role, SecretBits, SecretTensor
from protocols.trace import trace

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


# -- a small model ---------------------------------------------------------------------------------


def tiny_config(
    *, heads: int = 4, key_heads: int = 2, layers: int = 2, tied: bool = True, vocab: int = 40
) -> LlamaConfig:
    """An architecture small enough for a lockstep run."""
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        num_layers=layers,
        num_heads=heads,
        max_positions=64,
        bos_token_id=None,
        eos_token_ids=(),
        intermediate_size=48,
        num_kv_heads=key_heads,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_embeddings=tied,
    )


@dataclass
class TinyModel:
    """Random weights of an architecture, its plan, and what each computing party holds of it."""

    config: LlamaConfig
    plan: Plan
    floats: dict[str, NDArray[np.float64]]
    held: dict[Role, dict[str, Any]]


def tiny_model(config: LlamaConfig, seed: int = 0) -> TinyModel:
    """Share a model with random weights of the usual sizes."""
    rng = generator(seed)
    wanted = parameters_of(config)
    values = {
        name: np.abs(rng.normal(size=p.shape)) + 0.5
        if p.kind == "vector"
        else rng.normal(size=p.shape) * (0.5 if p.kind == "table" else p.shape[0] ** -0.5)
        for name, p in wanted.items()
    }
    plan = calibrate(config, values, [list(range(0, config.vocab_size, 3))])
    seeds = {1: os.urandom(32), 2: os.urandom(32)}
    known = {D: (1, 2), A: (1,), B: (2,), Role.TRACE: ()}
    held: dict[Role, dict[str, Any]] = {role: {} for role in known}
    for number, (name, p) in enumerate(wanted.items()):
        m = mask_parameter(name, number, p.kind, values[name], [seeds[1], seeds[2]])
        for role, which in known.items():
            sent = m if role in (A, B) else None
            held[role][name] = hold_parameter(role, number, p, sent, {w: seeds[w] for w in which})
    return TinyModel(config, plan, values, held)


@dataclass
class Generation:
    """What the client got: one array of logits (or of token indices) a chunk; and the run."""

    chunks: list[NDArray[np.float64]]
    outcome: Outcome


async def step(
    lane: Lane, model: TinyModel, count: int, cache: Cache, *, last_only: bool
) -> SecretTensor:
    """What a computing party (or a tracing lane) runs for one chunk of tokens."""
    ops, held = Secure(lane), model.held[lane.role]
    logits: SecretTensor = await forward(ops, model.plan, held, count, cache, last_only=last_only)
    return await ops.argmax(logits) if lane.settings.reveal == "argmax" else logits


def infer(
    model: TinyModel,
    chunks: Sequence[Sequence[int]],
    settings: Settings | None = None,
    *,
    last_only: bool = False,
) -> Generation:
    """Feed chunks of token ids, one after the other with one cache (prefill, then decode)."""
    settings = settings or Settings()
    vocab = model.config.vocab_size
    argmax = settings.reveal == "argmax"
    width = ARGMAX_WIDTH if argmax else 64 - (RESIDUAL_BITS if model.config.tie_embeddings else 20)

    async def party(lane: Lane) -> None:
        cache = Cache.empty(model.config.num_layers)
        for strand, chunk in zip(lane.fork(len(chunks)), chunks, strict=True):
            strand.clock = lane.clock
            result = await step(strand, model, len(chunk), cache, last_only=last_only)
            assert result.width == width
            await reveal(strand, result)
            lane.join([strand])

    async def client(lane: Lane) -> list[Words]:
        strands = lane.fork(len(chunks))
        for strand, chunk in zip(strands, chunks, strict=True):
            await request_rows(strand, np.array(chunk), vocab)
        got = []
        for strand, chunk in zip(strands, chunks, strict=True):
            rows = 1 if last_only else len(chunk)
            shape = (rows,) if argmax else (rows, vocab)
            got.append(await revealed(strand, shape, width))
        return got

    programs: dict[Role, Any] = dict.fromkeys(COMPUTING, party)
    programs[Role.CLIENT] = client
    outcome = run_parties(programs, settings)
    frac = 0 if argmax else FRACTION_BITS
    return Generation([decode(got, frac, width) for got in outcome.results[Role.CLIENT]], outcome)
