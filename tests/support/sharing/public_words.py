"""Prints public numbers word for word, and their digests: run under one kind of processor."""

import json
import math
from functools import partial

import numpy as np

from models.configs.reading import FalconConfig, LlamaConfig, RopeScaling
from models.programs.decoders.falcon import alibi_slopes
from models.programs.plan import Plan, draft_plan
from models.programs.program import Batch, rotation_of
from models.programs.public import plan_digests
from protocols.base.precise import inverse_root
from protocols.base.ring import encode
from protocols.drivers.attending import bias_words
from protocols.drivers.ops import Slopes
from protocols.drivers.public import table_digests
from protocols.functions.elementary import gained_spline
from protocols.functions.softcap import Cap

_SIZES = {
    "vocab_size": 5,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "max_positions": 4096,
    "intermediate_size": 6,
}
_LLAMA = {
    **_SIZES,
    "num_kv_heads": 1,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_embeddings": True,
}
_SCALINGS = {
    "plain": None,
    "linear": RopeScaling(kind="linear", factor=3.0),
    "dynamic": RopeScaling(kind="dynamic", factor=2.0, original_max_positions=512),
    "yarn": RopeScaling(
        kind="yarn",
        factor=8.0,
        attention_factor=1.2,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=True,
        original_max_positions=512,
    ),
    "llama3": RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=512,
    ),
}


def features() -> list[str]:
    """What NumPy's loops can be told to do without on this machine, most recent last."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return [name for name in __cpu_dispatch__ if __cpu_features__[name]]


def configs() -> dict[str, LlamaConfig | FalconConfig]:
    """Small models of every kind of rotary positions, and one with ALiBi."""
    found: dict[str, LlamaConfig | FalconConfig] = {
        name: LlamaConfig(**_LLAMA, rope_scaling=scaling)  # type: ignore[arg-type]
        for name, scaling in _SCALINGS.items()
    }
    found["gemma"] = LlamaConfig(
        **_LLAMA,  # type: ignore[arg-type]
        embedding_scale=24**0.5,
        score_cap=50.0,
        logits_cap=30.0,
        rotary=("local", "none"),
        local_rope_theta=77.0,
    )
    found["normed"] = LlamaConfig(**_LLAMA, qk_norm=True)  # type: ignore[arg-type]
    found["alibi"] = FalconConfig(
        **_SIZES,  # type: ignore[arg-type]
        num_kv_heads=3,
        layer_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_embeddings=True,
        alibi=True,
        bias=True,
        hidden_act="gelu",
        new_decoder_architecture=False,
        parallel_attn=False,
        parallel_norms=0,
    )
    return found


def plans() -> dict[str, Plan]:
    """Their plans, with typical ranges."""
    return {name: draft_plan(config) for name, config in configs().items()}


def words() -> dict[str, list[int]]:
    """Public words as both evaluators multiply by them."""
    found = {}
    for size in (1, 24, 64, 576, 768, 4096):
        for halves in (1, 2):
            spline, _ = gained_spline(halves, math.sqrt(size))
            found[f"x^-{halves}/2 over {size}"] = spline.tables.reshape(-1).tolist()
    for name, config in configs().items():
        if name != "alibi":
            kind = "local" if name == "gemma" else "global"
            turn = rotation_of(partial(config.turns, kind=kind), Batch((700,)), 11)
            both = np.concatenate([encode(turn.cos, 18), encode(turn.sin, 18)])
            found[f"rotary, {name}"] = both.reshape(-1).tolist()
    for cap in (1.0, 30.0, 50.0, 999.5):
        found[f"cap, {cap}"] = Cap(cap).waves.weights[1].tolist()
    for heads in (4, 71):
        slopes = Slopes(alibi_slopes(heads), inverse_root(64))
        found[f"alibi, {heads}"] = bias_words(slopes.bias(300)).reshape(-1).tolist()
    return found


if __name__ == "__main__":
    digests = {name: plan_digests(plan) for name, plan in plans().items()}
    print(json.dumps({"words": words(), "digests": {"tables": table_digests(), **digests}}))
