"""Keys that a `config.json` leaves out mean what transformers' configuration classes say."""

import pytest
import transformers

from models.configs.reading import config_from_hf

SMALL = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
ALSO = {
    "gemma": {"head_dim": 8},
    "opt": {"ffn_dim": 48},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": "c2p|p2c",
    },
}
TYPES = (
    "camembert", "data2vec-text", "mpnet", "electra", "deberta-v2", "modernbert", "gemma",
    "gemma2", "gemma3_text", "phi3", "granite", "smollm3", "opt", "gpt_neox",
)  # fmt: skip


def first(reference, *names):
    return next(getattr(reference, name) for name in names if hasattr(reference, name))


@pytest.mark.parametrize("model_type", TYPES)
def test_absent_keys_take_the_values_of_transformers(model_type):
    given = {**SMALL, **ALSO.get(model_type, {})}
    if model_type == "opt":
        del given["intermediate_size"]
    reference = transformers.AutoConfig.for_model(model_type, **given)
    config = config_from_hf({"model_type": model_type, **given}, {})
    offset = getattr(config, "position_offset", 0)
    assert config.max_positions == reference.max_position_embeddings - offset
    assert config.tie_embeddings == reference.tie_word_embeddings
    names = ("hidden_activation", "hidden_act", "activation_function")
    assert config.hidden_act == first(reference, *names)
    if model_type != "opt":  # whose eps is torch's
        eps = first(config, "rms_norm_eps", "layer_norm_eps")
        assert eps == first(reference, "rms_norm_eps", "norm_eps", "layer_norm_eps")
    if hasattr(reference, "num_key_value_heads"):
        assert config.num_kv_heads == reference.num_key_value_heads
        assert config.head_dim == getattr(reference, "head_dim", None) or 8
    rope = getattr(reference, "rope_parameters", None) or {}
    if "full_attention" in rope:
        assert config.rope_theta == rope["full_attention"]["rope_theta"]
        assert config.local_rope_theta == rope["sliding_attention"]["rope_theta"]
    elif rope:
        assert config.rope_theta == rope["rope_theta"]
        assert config.rotated == int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
    kinds = getattr(reference, "layer_types", None) or ["full_attention"] * 8
    windows = config.windows if getattr(config, "windows", None) else (None,) * 8
    if reference.max_position_embeddings > (getattr(reference, "sliding_window", 0) or 0):
        assert [w is not None for w in windows] == [k == "sliding_attention" for k in kinds]
