"""Settings that a `config.json` may contain, with values that change the function or do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import tiny_models
import transformers

_LEFT_OUT = frozenset(
    {
        *("architectures", "model_type", "id2label", "label2id", "transformers_version"),
        # Tested in `test_config_lenient.py`.
        *("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"),
    }
)
_FULL = ["full_attention"] * 2
_SLIDING = ["sliding_attention"] * 2
_MIXED = ["full_attention", "sliding_attention"]
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_LINEAR_ROPE = {"type": "linear", "factor": 2.0}
_FLAG = (None, False, True)
_ACTIVATIONS = ("gelu", "relu", "silu", "swish", "gelu_new", "tanh", "linear", None)
# Keys that need values of a certain kind.
_VALUES: dict[str, tuple[Any, ...]] = {
    "sliding_window": (None, 0, 3, 20, 4096),
    "layer_types": (None, [], _FULL, _SLIDING, _MIXED, _MIXED[::-1], ["full_attention"]),
    "use_sliding_window": _FLAG,
    "max_window_layers": (None, 0, 1, 2, 28),
    "rope_parameters": (None, {}, _DEFAULT_ROPE, {**_DEFAULT_ROPE, **_LINEAR_ROPE}),
    "rope_scaling": (None, {}, _DEFAULT_ROPE, {"rope_type": "default"}, _LINEAR_ROPE),
    "rope_theta": (None, 10000, 1e4, 500.0),
    "partial_rotary_factor": (None, 1, 1.0, 0.5),
    "attention_bias": _FLAG,
    "mlp_bias": _FLAG,
    "head_dim": (None, 4, 8, 0),
    "dtype": (None, "float32", "bfloat16"),
    "hidden_act": _ACTIVATIONS,
    "hidden_activation": _ACTIVATIONS,
    "activation": _ACTIVATIONS,
    "activation_function": _ACTIVATIONS,
    "pooler_hidden_act": _ACTIVATIONS,
    "classifier_activation": _ACTIVATIONS,
    "summary_activation": (None, "tanh", "relu"),
    "summary_type": (None, "first", "last", "mean", "cls_index"),
    "problem_type": (None, "regression", "single_label_classification"),
    "pos_att_type": (None, [], ["c2p"], ["p2c", "c2p"], "c2p|p2c", "p2c"),
    "norm_rel_ebd": (None, "none", "layer_norm"),
    "classifier_pooling": ("cls", "mean", None),
    "position_buckets": (None, -1, 0, 4, 8),
    "max_relative_positions": (None, -1, 0, 6, 12),
    "attn_logit_softcapping": (None, 2.0, 30.0),
    "final_logit_softcapping": (None, 2.0, 30.0),
    "query_pre_attn_scalar": (None, 4, 8, 256),
    "no_rope_layers": (None, [], [0, 1], [1, 1]),
    "type_vocab_size": (None, 0, 1, 2, 4),
    "is_causal": _FLAG,
    "per_layer_config": (None, {}, {"0": {"layer_norm_eps": 0.1}}),
    "pruned_heads": (None, {}, {"0": [1]}),
}
# Keys that no class knows, that only some know, or that transformers itself once wrote.
EXTRA: dict[str, tuple[Any, ...]] = {
    "_attn_implementation_autoset": (True, False),
    "_flash_attn_2_enabled": (True,),
    "_commit_hash": ("0123abcd",),
    "_num_labels": (5,),
    "auto_map": ({"AutoConfig": "configuration_x.XConfig", "AutoModel": "modeling_x.X"},),
    "custom_pipelines": ({},),
    "torch_dtype": (None, "float32", "float16", "bfloat16"),
    "torchscript": (False, True),
    "use_bfloat16": (False, True),
    "transformers_version": ("3.0.2", "4.46.0.dev0"),
    "transformers.js_config": ({"use_external_data_format": True},),
    "gradient_checkpointing": _FLAG,
    "use_cache": _FLAG,
    "pretraining_tp": (None, 1, 2),
    "unsloth_fixed": (True,),
    "unsloth_version": ("2025.3.1",),
    "unsloth_training_args": ({"r": 16},),
    "finetuning_task": (None, "mrpc"),
    "task_specific_params": (None, {"text-generation": {"do_sample": True, "max_length": 50}}),
    "language": ("en",),
    "adapters": ({"adapters": {}, "config_map": {}},),
    "quantization": ({},),
    "quantization_config": (None, {}),
    "sentence_transformers": ({"activation_fn": "x", "version": "4.1"},),
    "sbert_ce_default_activation_function": ("torch.nn.modules.linear.Identity",),
    "output_past": (True, False),
    "n_ctx": (None, 1024),
    "n_head_kv": (None, 1),
    "n_layer": (None, 2),
    "vocab_type": ("bpe",),
    "gradient_accumulation": (8,),
    "deepspeed": (None, {}),
    "directionality": ("bidi",),
    "pooler_fc_size": (768,),
    "pooler_num_attention_heads": (12,),
    "pooler_num_fc_layers": (3,),
    "pooler_size_per_head": (128,),
    "pooler_type": ("first_token_transform",),
    "position_embedding_type": (None, "absolute", "relative_key", "rope"),
    "attention_type": (None, "full", "original_full"),
    "attn_implementation": (None, "eager", "sdpa"),
    "_attn_implementation": (None, "eager"),
    "use_flash_attn": _FLAG,
    "flash_attn_bias": _FLAG,
    "rope_interleaved": _FLAG,
    "rotary_dim": (None, 4),
    "rotary_pct": (None, 1.0, 0.5),
    "rotary_emb_base": (None, 10000, 500),
    "rope_local_base_freq": (None, 10000.0, 500.0),
    "sliding_window_pattern": (None, 1, 2),
    "is_llama_config": (True,),
    "num_experts": (None, 0, 4),
    "num_local_experts": (None, 0, 4),
    "moe_intermediate_size": (None, 24),
    "scale_emb": (None, 1, 12),
    "scale_depth": (None, 1.4),
    "logit_scale": (None, 1, 2.0),
    "alibi": _FLAG,
    "clip_qkv": (None, 8.0),
    "use_qk_norm": _FLAG,
    "qk_layernorm": _FLAG,
    "use_mrope": _FLAG,
    "tie_encoder_decoder": _FLAG,
    "cross_attention_hidden_size": (None, 16),
    "attention_chunk_size": (None, 8192),
    "attn_temperature_tuning": (None, False, True),
    "encoder_no_repeat_ngram_size": (0,),
    "decoder_start_token_id": (None, 2),
    "mask_token_id": (None, 2),
    "unk_token_id": (None, 0),
    "ignore_index": (-100,),
    "label_smoothing": (0.1,),
    "hidden_dropout_prob": (None, 0.1),
    "classifier_dropout": (None, 0.3),
    "layer_norm_elementwise_affine": _FLAG,
    "model_max_length": (4096, 2),
    "max_seq_len": (None, 8),
    "max_sequence_length": (None, 8),
    "seq_length": (None, 8),
    "tokenizer_class": (None, "BertTokenizer"),
    "prefix": (None, "x"),
    "sep_token_id": (None, 4),
    "token_classification_bias": _FLAG,
    "eos_token": ("</s>",),
    "transformers_weights": (None, "model.safetensors"),
    "mup_width_scale": (1.0,),
    "rms_norm": _FLAG,
    "residual_in_fp32": _FLAG,
    "upcast_layernorm": _FLAG,
    "dual_chunk_attention_config": (None,),
    "dynamic": (None, {}),
    "ft_format": ("lora",),
    "bitsandbytes": ("0.43",),
    "parallel_attn": _FLAG,
    "num_kv_heads": (None, 2),
    "kv_channels": (None, 4),
    "multi_query": _FLAG,
    "multi_query_group_num": (None, 2),
    "ffn_hidden_size": (None, 24),
    "n_inner": (None, 24),
    "n_embed": (None, 16),
    "n_embd": (None, 16),
    "d_model": (None, 16),
    "num_layers": (None, 2),
}


_LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
OLD_ROPES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("rope_theta", {"rope_theta": 500.0}),
    ("rope_theta", {"rope_theta": 500.0, "rope_scaling": None}),
    ("rope_theta", {}),
    ("rotary_emb_base", {"rotary_emb_base": 500, "rotary_pct": 0.5}),
    ("rope_local_base_freq", {"rope_local_base_freq": 500.0, "rope_theta": 900.0}),
    *(
        ("rope_scaling", {"rope_theta": 500.0, "rope_scaling": scaling})
        for scaling in (
            {},
            {"type": "default"},
            {"rope_type": "default", "factor": 2.0, "low_freq_factor": 1.0},
            {"type": "linear", "factor": 2.0},
            {"type": "linear", "rope_type": "linear", "factor": 2.0, "finetuned": True},
            {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 8},
            {"rope_type": "linear", "factor": 2.0, "mscale": 0.7, "attention_factor": 1.5},
            {"rope_type": "default", "type": "linear", "factor": 2.0},
            {"rope_type": "linear", "type": "dynamic", "factor": 2.0},
            {"type": "dynamic", "factor": 2.0, "alpha": 1000.0},
            {"rope_type": "llama3", **_LLAMA3},
            {"rope_type": "llama3", **_LLAMA3, "beta_fast": 4.0, "attention_factor": 2.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5},
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 5,
                "attn_factor": 3.0,
                "extrapolation_factor": 2.0,
                "low_freq_factor": 1.0,
            },
            {"rope_type": "default", "partial_rotary_factor": 0.5},
            {"type": "mrope", "mrope_section": [1, 1, 0]},
            {"type": "ntk", "factor": 2.0},
        )
    ),
)
"""Rotary positions as earlier versions wrote them; they take the place of `rope_parameters`."""


@cache
def own_keys(model_type: str) -> dict[str, Any]:
    """The keys that transformers' class writes, with the values of the tiny model."""
    written = tiny_models.config_json(model_type)
    return {name: value for name, value in written.items() if name not in _LEFT_OUT}


@cache
def every_key() -> list[str]:
    """The keys of all families, and of none."""
    return sorted({*EXTRA, *_VALUES, *(k for t in tiny_models.SETTINGS for k in own_keys(t))})


def values_of(key: str, usual: Any) -> tuple[Any, ...]:
    """Values for a key whose value in some tiny model is `usual`."""
    if key in _VALUES or key in EXTRA:
        return (*_VALUES.get(key, ()), *EXTRA.get(key, ()))
    if usual is None or isinstance(usual, bool):
        return _FLAG
    if isinstance(usual, int):
        return (None, usual, 0, 2 * usual or 1)
    if isinstance(usual, float):
        return (None, usual, 0.0, 2 * usual or 0.5, 1)
    return (None, usual)


def _usual(key: str, model_type: str) -> Any:
    for each in (model_type, *tiny_models.SETTINGS):
        if key in (found := own_keys(each)):
            return found[key]
    return None


def setting_cases(model_type: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key with every value, without repetitions: the key, and the changed `config.json`."""
    base = tiny_models.config_json(model_type)
    for key in every_key():
        seen = set()
        for value in values_of(key, _usual(key, model_type)):
            if (text := json.dumps(value)) not in seen:
                seen.add(text)
                yield key, {**base, key: value}
    if "rope_parameters" in base:
        for key, changes in OLD_ROPES:
            yield key, {**{k: v for k, v in base.items() if k != "rope_parameters"}, **changes}


def config_of(data: dict[str, Any]) -> Any:
    """The configuration that transformers reads from a `config.json`."""
    known = transformers.CONFIG_MAPPING[data["model_type"]]
    return known.from_dict(json.loads(json.dumps(data)))
