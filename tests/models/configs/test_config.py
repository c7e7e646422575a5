"""Architectures: read from both formats, refused when not evaluated faithfully, sent as JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secure_models import random_values

from models.configs.gguf import config_of_metadata
from models.configs.reading import (
    LlamaConfig,
    ModelConfig,
    RopeScaling,
    config_from_public,
    load_config,
)
from models.files.locate import demo_model_path
from models.owner.calibrate import plain_run
from models.programs.families import parameters_of
from protocols.errors import ModelError

SMALL = LlamaConfig(
    vocab_size=96,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    max_positions=64,
    bos_token_id=None,
    eos_token_ids=(2, 5),
    intermediate_size=48,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope_theta=1e4,
    tie_embeddings=True,
)
# As written by transformers 4; version 5 has rope_parameters instead of the last two.
HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": [2, 5],
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "rope_theta": 10000.0,
}
GGUF = {
    "general.architecture": "llama",
    "llama.vocab_size": 96,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 48,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": 8,
    "llama.context_length": 64,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.eot_token_id": 5,
}


def test_both_formats_give_the_same_configuration():
    assert LlamaConfig.from_hf(HF) == SMALL
    assert config_of_metadata(GGUF, []) == SMALL


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "bloom"),
        ("llama.expert_count", 8),
        ("llama.rope.scaling.type", "yarn"),
        ("llama.rope.scaling.factor", 2.0),
        ("llama.rope.dimension_count", 4),
        ("llama.attention.value_length", 4),
        ("llama.attention.sliding_window", 16),
        ("llama.attention.head_count", None),
    ],
)
def test_gguf_settings_are_refused_by_name(key, value):
    with pytest.raises(ModelError, match=key):
        config_of_metadata({**GGUF, key: value}, [])


def test_public_round_trip_through_json():
    wire = json.loads(json.dumps(SMALL.to_public()))
    assert wire["family"] == "llama"
    assert config_from_public(wire) == SMALL
    assert LlamaConfig.from_public(wire) == SMALL
    assert isinstance(config_from_public(wire), ModelConfig)
    with pytest.raises(ModelError, match="family"):
        config_from_public({**wire, "family": "mamba"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", 2**40),
        ("vocab_size", 96.0),
        ("vocab_size", True),
        ("hidden_size", -1),
        ("num_layers", 10**6),
        ("num_layers", None),
        ("head_dim", 7),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", float("nan")),
        ("rms_norm_eps", "small"),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("tie_embeddings", 1),
        ("hidden_act", "swish"),
        ("hidden_act", ["silu"]),
        ("eos_token_ids", 2),
        ("eos_token_ids", [96]),
        ("eos_token_ids", ["2"]),
        ("eos_token_ids", [1] * 1000),
        ("bos_token_id", -1),
        ("bos_token_id", "x" * 10_000),
        ("surprise", 1),
    ],
)
def test_a_peer_cannot_announce_nonsense(key, value):
    with pytest.raises(ModelError) as caught:
        config_from_public({**SMALL.to_public(), key: value})
    assert len(str(caught.value)) < 250


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(sorted(SMALL.to_public())), json_values, st.booleans(), json_values | st.none()
)
def test_any_json_is_accepted_or_refused_cleanly(key, value, drop, other):
    data = {**SMALL.to_public(), key: value}
    if drop:
        del data[key]
    for candidate in (data, other):
        try:
            config = config_from_public(candidate)
        except ModelError:
            continue
        assert LlamaConfig.from_public(config.to_public()) == config


def test_load_config_merges_the_end_tokens_of_generation_config(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"config\.json: missing"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert load_config(tmp_path) == replace(SMALL, eos_token_ids=(2, 5, 9))
    (tmp_path / "config.json").write_text("[1")
    with pytest.raises(ModelError, match="JSON"):
        load_config(tmp_path)


def test_the_demo_model():
    config = load_config(demo_model_path())
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert (config.rope_theta, config.max_positions) == (100_000.0, 8192)
    assert config.tie_embeddings
    assert config.eos_token_ids == (2,)


@pytest.mark.parametrize(
    "changes",
    [
        {"head": "none"},
        {"hidden_act": "gelu"},
        {"qkv_bias": True},
        {"output_bias": True},
        {"mlp_bias": True},
        {"qk_norm": True},
        {"windows": (8, None)},
        {"rope_scaling": RopeScaling(kind="linear", factor=2.0)},
        {"rotary_dim": 2},
        {"rotary": ("none", "global")},
        {"rotary": ("local", "global"), "local_rope_theta": 3.0},
        {"post_norms": True},
        {"embedding_scale": 3.0},
        {"score_cap": 1.0},
        {"logits_cap": 1.0},
    ],
)
def test_no_setting_is_ignored_by_the_program(changes):
    """Settings of a configuration change the shared tensors, or the result for the same weights."""
    changed = replace(SMALL, **changes)
    if parameters_of(changed) != parameters_of(SMALL):
        return
    values = random_values(SMALL)
    ids = [list(range(2, 14))]
    usual, found = (plain_run(config, values, ids) for config in (SMALL, changed))
    assert found.shape != usual.shape or np.abs(found - usual).max() > 1e-3
