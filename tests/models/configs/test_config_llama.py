"""The LLaMA family: what its `config.json` says, against transformers' own configurations."""

import pytest
import torch
import transformers
from reference import CACHE, radians
from tiny_models import config_json
from transformers.masking_utils import create_sliding_window_causal_mask
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from models.configs.reading import LlamaConfig, RopeScaling, config_from_public
from models.configs.rope import rotary_turns
from protocols.errors import ModelError

TYPES = ("llama", "mistral", "qwen2", "qwen3")
REFERENCE = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def read(model_type: str, /, **changes) -> LlamaConfig:
    return LlamaConfig.from_hf(config_json(model_type, "causal-lm", **changes))


@pytest.mark.parametrize("model_type", TYPES)
def test_absent_keys_take_the_values_of_transformers(model_type):
    given = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
    }
    reference = REFERENCE[model_type](**given)
    config = LlamaConfig.from_hf({"model_type": model_type, **given})
    head_dim = getattr(reference, "head_dim", None) or 64 // 32
    assert config.num_kv_heads == reference.num_key_value_heads
    assert config.head_dim == head_dim
    assert config.rms_norm_eps == reference.rms_norm_eps
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.max_positions == reference.max_position_embeddings
    assert config.tie_embeddings == reference.tie_word_embeddings
    assert config.head == "causal-lm"
    # Of these, only Mistral limits attention without being told to.
    assert config.windows == ((4096,) * 30 if model_type == "mistral" else None)


def test_transformers_5_keeps_the_rotary_base_in_a_mapping():
    config = read("llama", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    assert (config.rope_theta, config.rope_scaling) == (5e5, None)
    config = read("llama", rope_parameters=None, rope_theta=7e5, rope_scaling=None)
    assert config.rope_theta == 7e5
    same = {"rope_type": "default", "rope_theta": 3e5}
    nested = {"full_attention": same, "sliding_attention": dict(same)}
    assert read("qwen3", rope_parameters=nested).rope_theta == 3e5


@pytest.mark.parametrize(
    ("model_type", "changes", "flags"),
    [
        ("llama", {}, ""),
        ("llama", {"attention_bias": True}, "qkv_bias output_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("mistral", {}, ""),
        ("qwen2", {}, "qkv_bias"),
        ("qwen3", {}, "qk_norm"),
        ("qwen3", {"attention_bias": True}, "qk_norm qkv_bias output_bias"),
    ],
)
def test_biases_and_norms_of_each_kind(model_type, changes, flags):
    config = read(model_type, **changes)
    names = ("qkv_bias", "output_bias", "mlp_bias", "qk_norm")
    assert {name for name in names if getattr(config, name)} == set(flags.split())


@pytest.mark.parametrize(
    ("model_type", "changes", "windows"),
    [
        ("mistral", {"sliding_window": 4}, (4, 4)),
        ("mistral", {"sliding_window": None}, None),
        ("mistral", {"sliding_window": 20}, None),  # as long as the context
        ("qwen2", {"sliding_window": 4, "use_sliding_window": False, "layer_types": None}, None),
        (
            "qwen2",
            {
                "sliding_window": 4,
                "use_sliding_window": True,
                "max_window_layers": 1,
                "layer_types": None,
            },
            (None, 4),
        ),
        (
            "qwen3",
            {
                "sliding_window": 4,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (4, None),
        ),
        ("llama", {"sliding_window": 20}, None),
    ],
)
def test_sliding_windows(model_type, changes, windows):
    config = read(model_type, **changes)
    assert config.windows == windows
    assert config_from_public(config.to_public()) == config


def test_a_window_counts_the_token_itself():
    """The definition of `windows`, against the mask that transformers applies."""
    reference = transformers.MistralConfig(sliding_window=3, num_hidden_layers=1)
    reference._attn_implementation = "eager"
    mask = create_sliding_window_causal_mask(
        config=reference,
        inputs_embeds=torch.zeros(1, 6, 4),
        attention_mask=None,
        **{CACHE: None},
    )
    assert (mask[0, 0] == 0).sum(dim=1).tolist() == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("length", [5, 20, 33])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        LLAMA3,
        {"type": "linear", "factor": 2.0},  # as older versions wrote it
    ],
)
def test_scaled_frequencies_equal_transformers(rope, length):
    rope = {"rope_theta": 10000.0, **rope}
    config = read("llama", rope_parameters=rope, head_dim=16)
    reference = transformers.LlamaConfig(
        head_dim=16, max_position_embeddings=20, rope_parameters=dict(rope)
    )
    kind = rope.get("rope_type", rope.get("type"))
    expected, attention_factor = ROPE_INIT_FUNCTIONS[kind](reference, "cpu", seq_len=length)
    assert attention_factor == 1.0
    assert config.rope_scaling is not None
    assert config.rope_scaling.kind == kind
    assert radians(config.turns(length)) == pytest.approx(expected.double().numpy(), rel=1e-5)
    assert config.max_positions == (40 if kind == "dynamic" else 20)
    assert config_from_public(config.to_public()) == config


def test_older_files_have_rope_scaling():
    config = read("llama", rope_parameters=None, rope_theta=5e5, rope_scaling=LLAMA3)
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling(
        kind="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=16,
    )


def test_plain_frequencies():
    assert radians(rotary_turns(10000.0, 4, None, 9)) == pytest.approx([1.0, 0.01])


def rope(**values):
    return {"rope_parameters": {"rope_theta": 1e4, **values}}


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("llama", {"hidden_act": "mish"}, "hidden_act: 'mish'"),
        ("llama", {"model_type": "qwen2_moe"}, "model_type: 'qwen2_moe'"),
        ("llama", {"model_type": None}, "model_type: None"),
        ("llama", {"model_type": ["llama"]}, "model_type"),
        ("llama", rope(rope_type="yarn", factor=0.5), "factor: 0.5"),
        ("llama", rope(rope_type="proportional"), "rope_type: 'proportional'"),
        ("llama", rope(rope_type="longrope"), "rope_scaling.factors: None"),
        ("llama", rope(rope_type=["x"]), "rope_type"),
        ("llama", rope(partial_rotary_factor=0.5), "partial_rotary_factor: 0.5"),
        ("llama", rope(rope_type="linear"), "rope_scaling.factor: None"),
        ("llama", rope(rope_type="linear", factor=0.5), "rope_scaling.factor: 0.5"),
        ("llama", {"rope_parameters": {**LLAMA3, "low_freq_factor": 9}}, "high_freq_factor"),
        ("llama", {"rope_scaling": "yarn"}, "rope_scaling: 'yarn'"),
        ("llama", {"partial_rotary_factor": 0.5, "rope_parameters": None}, "partial_rotary"),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_theta": 1}, "sliding_attention": {}}},
            "the same rotary positions in every layer",
        ),
        (
            "llama",
            rope(rope_type="dynamic", factor=2.0, original_max_position_embeddings=10),
            "original_max_position_embeddings: 10",
        ),
        ("llama", {"sliding_window": 8}, "full attention"),
        ("mistral", {"sliding_window": "8"}, "sliding_window"),
        ("mistral", {"sliding_window": 8, "layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        ("qwen2", {"layer_types": ["full_attention"]}, "layer_types"),
        ("qwen3", {"layer_types": ["chunked_attention"] * 2}, "layer_types"),
        ("llama", {"quantization_config": {"quant_method": "eetq"}}, "'eetq'"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("llama", {"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "per_layer_config"),
        ("llama", {"hidden_size": "32"}, "hidden_size"),
        ("llama", {"num_attention_heads": 0}, "num_heads: 0"),
        ("llama", {"num_attention_heads": 3, "head_dim": None}, "does not divide hidden_size"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads 3 does not divide"),
        ("llama", {"num_hidden_layers": None}, "incomplete"),
        ("llama", {"vocab_size": None}, "incomplete"),
        ("llama", {"head_dim": 3}, "head_dim 3 is odd"),
    ],
)
def test_what_is_not_evaluated_faithfully_is_refused(model_type, changes, says):
    with pytest.raises(ModelError) as caught:
        read(model_type, **changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "swish"},
        {"quantization_config": {}},
        {"logits_scaling": 1.0, "num_experts": 0, "use_mrope": False, "pretraining_tp": 2},
        # What transformers' class does not read; experts' weights would be refused.
        {"logits_scaling": 8.0, "num_experts": 60, "use_mrope": True, "scale_emb": 12},
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.2, "attention_multiplier": 0.01},
        {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
        rope(mrope_section=[1, 1]),
        {"pad_token_id": -1},  # as the first LLaMA checkpoints have it
    ],
)
def test_settings_that_change_nothing(changes):
    config = read("llama", **changes)
    plain = read("llama")
    assert config == plain or (config.pad_token_id is None and "pad_token_id" in changes)


def test_other_activations_are_read():
    for name in ("gelu", "gelu_pytorch_tanh", "relu"):
        assert read("llama", hidden_act=name).hidden_act == name
