"""Variants of every family, and what transformers computes for them."""

import pytest
import torch

from models.configs.architecture import ACTIVATIONS

TEXTS = [[5, 9, 30, 2, 17, 22, 8], [6, 31, 7], [12]]
"""Token sequences of unequal length, without the padding token."""


def outputs(model, head, ids, types=None):
    """What transformers computes for one sequence, as rows of numbers."""
    tokens = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.no_grad():
        result = model(input_ids=torch.tensor([ids]), **tokens)
    if head == "none":
        return result.last_hidden_state[0].numpy()
    if head == "question-answering":
        return torch.stack([result.start_logits[0], result.end_logits[0]], dim=-1).numpy()
    return result.logits[0].numpy().reshape(-1, result.logits.shape[-1])


ACTIVATION_KEYS = {
    "distilbert": "activation",
    "gpt2": "activation_function",
    "falcon": "activation",
    "opt": "activation_function",
    "gemma2": "hidden_activation",
    "gemma3_text": "hidden_activation",
    "modernbert": "hidden_activation",
}
"""Where it is not `hidden_act`."""


ACTIVATED = [
    pytest.param(
        model_type,
        {ACTIVATION_KEYS.get(model_type, "hidden_act"): name},
        id=f"{model_type}-{name}",
    )
    for model_type in ("bert", "distilbert", "gpt2", "llama", "falcon")
    for name in (*ACTIVATIONS, "swish")
]
"""Every activation in every family; of those whose layers are the same, in one."""


STRETCHED = {
    "max_position_embeddings": 8,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
}
"""A sequence soon outgrows the training's context, from where on the frequencies change."""


YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e2,
    "factor": 4.0,
    "original_max_position_embeddings": 5,
}
SCALES = {"mscale_all_dim": 1.2}
LONGROPE = {
    "max_position_embeddings": 40,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "short_factor": [1.1, 1.3],
        "long_factor": [2.0, 3.0],
    },
}
VARIANTS = [
    ("llama", STRETCHED),
    ("falcon", STRETCHED),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0}}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e2,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 2, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}),
    ("gpt2", {"activation_function": "gelu"}),
    ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    ("falcon", {"alibi": True, "num_attention_heads": 4}),
    ("falcon", {"alibi": True, "num_attention_heads": 6, "hidden_size": 24, "multi_query": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"multi_query": False, "bias": True}),
    ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    ("opt", {"do_layer_norm_before": False}),
]
READ = [
    ("falcon", {"rope_parameters": YARN}),
    ("qwen3", {"rope_parameters": YARN}),
    ("llama", {"rope_parameters": {**YARN, "truncate": False, "mscale": 0.7, **SCALES}}),
    ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("phi3", {"sliding_window": 3}),
    ("phi3", LONGROPE),
    ("granite", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("smollm3", {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 3}),
    ("opt", {"word_embed_proj_dim": 16, "_remove_final_layer_norm": True}),
    ("gpt_neox", {"use_parallel_residual": False}),
]
"""Settings that change what is read or folded in, and nothing of what the parties do."""
ENCODED = [
    ("electra", {"embedding_size": 16}),
    ("modernbert", {"classifier_pooling": "mean", "classifier_activation": "relu"}),
    ("modernbert", {"layer_types": ["sliding_attention", "full_attention"]}),
    ("deberta-v2", {"position_buckets": -1, "share_att_key": False, "norm_rel_ebd": "none"}),
    (
        "deberta-v2",
        {"max_relative_positions": 12, "position_buckets": 4, "pooler_hidden_act": "tanh"},
    ),
]
"""Encoders with settings that change the function."""
