"""What the `config.json` of published models says is read, and what would change it is refused.

The files are cut down to the keys that matter, as they stand on the hub.
"""

import math

import pytest

from models.configs.reading import config_from_hf
from protocols.errors import ModelError

MPNET = {
    "architectures": ["MPNetForMaskedLM"],
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 514,
    "model_type": "mpnet",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "relative_attention_num_buckets": 32,
    "vocab_size": 30527,
}
ELECTRA = {
    "architectures": ["ElectraForPreTraining"],
    "embedding_size": 128,
    "hidden_act": "gelu",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "electra",
    "num_attention_heads": 4,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "summary_activation": "gelu",
    "summary_type": "first",
    "summary_use_proj": True,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
DEBERTA = {
    "model_type": "deberta-v2",
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}
MODERNBERT = {
    "architectures": ["ModernBertForMaskedLM"],
    "attention_bias": False,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "mean",
    "cls_token_id": 50281,
    "decoder_bias": True,
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160000.0,
    "hidden_activation": "gelu",
    "hidden_size": 768,
    "intermediate_size": 1152,
    "layer_norm_eps": 1e-05,
    "local_attention": 128,
    "local_rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "model_type": "modernbert",
    "norm_bias": False,
    "norm_eps": 1e-05,
    "num_attention_heads": 12,
    "num_hidden_layers": 22,
    "pad_token_id": 50283,
    "position_embedding_type": "absolute",
    "vocab_size": 50368,
}
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI4_MINI = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 199999,
    "eos_token_id": 199999,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 199999,
    "partial_rotary_factor": 0.75,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1.0 + i for i in range(48)],
        "short_factor": [1.0] * 48,
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
OPT_350M = {
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "bos_token_id": 2,
    "do_layer_norm_before": False,
    "eos_token_id": 2,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "prefix": "</s>",
    "vocab_size": 50272,
    "word_embed_proj_dim": 512,
}
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"],
    "bos_token_id": 0,
    "eos_token_id": 0,
    "hidden_act": "gelu",
    "hidden_size": 512,
    "intermediate_size": 2048,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "model_type": "gpt_neox",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
GRANITE = {
    "architectures": ["GraniteForCausalLM"],
    "attention_bias": False,
    "attention_multiplier": 0.015625,
    "bos_token_id": 0,
    "embedding_multiplier": 12.0,
    "eos_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "granite",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
SMOLLM3 = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": None,
    "eos_token_id": 128012,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
QWEN_YARN = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rope_scaling": {
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "type": "yarn",
    },
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
}


def read(data, head=None, **changes):
    return config_from_hf({**data, **changes}, {}, head=head)


def test_encoders():
    mpnet = read(MPNET, "none")
    assert (mpnet.max_positions, mpnet.position_offset, mpnet.skipped_token) == (512, 2, 1)
    electra = read(ELECTRA)
    assert (electra.head, electra.embedding_size, electra.hidden_size) == ("none", 128, 256)
    assert read(ELECTRA, embedding_size=256).embedding_size == 256
    deberta = read(DEBERTA)
    assert (deberta.head, deberta.rows, deberta.reach, deberta.max_positions) == (
        "none",
        512,
        512,
        512,
    )
    assert (deberta.shared, deberta.normed, deberta.pooler_act) == (True, True, "gelu")
    modern = read(MODERNBERT)
    assert (modern.head, modern.pooling, modern.layer_norm_eps) == ("masked-lm", "mean", 1e-5)
    assert modern.local[:4] == (False, True, True, False)
    assert modern.windows[:4] == (None, 65, 65, None)
    assert (modern.rope_theta, modern.local_rope_theta) == (160000.0, 10000.0)


def test_gemma():
    two = read(GEMMA2)
    assert (two.score_cap, two.logits_cap, two.post_norms) == (50.0, 30.0, True)
    assert two.windows[:3] == (4096, None, 4096)
    assert (two.embedding_scale, two.query_scale, two.tie_embeddings) == (48.0, 1 / 16, True)
    three = read(GEMMA3)
    assert (three.score_cap, three.logits_cap, three.qk_norm) == (None, None, True)
    assert three.windows[:7] == (512,) * 5 + (None, 512)
    assert three.rotary[:7] == ("local",) * 5 + ("global", "local")
    assert (three.rope_theta, three.local_rope_theta) == (1e6, 1e4)
    assert three.embedding_scale == math.sqrt(1152)


def test_phi_stays_within_the_context_of_its_training():
    config = read(PHI4_MINI)
    assert (config.max_positions, config.rotary_dim, config.head_dim) == (4096, 96, 128)
    assert config.windows is None
    factor = config.rope_scaling.attention_factor
    assert factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert len(config.turns(5)) == 64
    assert (config.turns(5)[48:] == 0).all()
    plain = read(PHI4_MINI, rope_scaling=None, partial_rotary_factor=None, sliding_window=2047)
    assert (plain.max_positions, plain.rotary_dim) == (131072, None)
    assert plain.windows == (2047,) * 32


def test_other_decoders():
    opt = read(OPT_350M)
    assert (opt.norm_first, opt.projects, opt.ends_in_norm) == (False, True, False)
    pythia = read(PYTHIA)
    assert (pythia.rotary_dim, pythia.parallel_attn, pythia.parallel_norms) == (16, True, 2)
    granite = read(GRANITE)
    assert (granite.query_scale, granite.residual_scale, granite.logits_scale) == (
        1 / 64,
        0.22,
        1 / 8,
    )
    smol = read(SMOLLM3)
    assert smol.rotary == ("global", "global", "global", "none") * 9
    assert (smol.tie_embeddings, smol.windows, smol.rotary_kinds()) == (True, None, ("global",))
    qwen = read(QWEN_YARN)
    assert qwen.rope_scaling.attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert (qwen.rope_scaling.kind, qwen.rope_scaling.beta_fast) == ("yarn", 32)


@pytest.mark.parametrize(
    ("data", "changes", "says"),
    [
        (MPNET, {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets"),
        (MPNET, {"pad_token_id": 0}, "pad_token_id"),
        (ELECTRA, {"architectures": ["ElectraForCausalLM"]}, "ElectraForCausalLM"),
        (ELECTRA, {"is_decoder": True}, "is_decoder"),
        (DEBERTA, {"position_biased_input": True}, "position_biased_input"),
        (DEBERTA, {"relative_attention": False}, "relative_attention"),
        (DEBERTA, {"pos_att_type": ["c2p"]}, "pos_att_type"),
        (DEBERTA, {"conv_kernel_size": 3}, "conv_kernel_size"),
        (DEBERTA, {"embedding_size": 128}, "embedding_size"),
        (DEBERTA, {"type_vocab_size": 2}, "type_vocab_size"),
        (DEBERTA, {"position_buckets": 255}, "buckets"),
        (MODERNBERT, {"norm_bias": True}, "norm_bias"),
        (MODERNBERT, {"classifier_pooling": "max"}, "pooling"),
        (MODERNBERT, {"layer_types": ["chunked_attention"] * 22}, "layer_types"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA2, {"layer_types": ["full_attention"]}, "layer_types"),
        (GEMMA2, {"attn_logit_softcapping": 0.5}, "score_cap"),
        (GEMMA2, {"rope_scaling": {"type": "ntk"}}, "ntk"),
        (GEMMA3, {"model_type": "gemma3"}, "'gemma3'"),
        (PHI4_MINI, {"partial_rotary_factor": 0.76}, "odd"),
        (PHI4_MINI, {"partial_rotary_factor": 0.5}, "factors"),
        (PHI4_MINI, {"rope_scaling": {"type": "longrope"}}, "factors"),
        (OPT_350M, {"enable_bias": False}, "enable_bias"),
        (OPT_350M, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (PYTHIA, {"attention_bias": False}, "attention_bias"),
        (GRANITE, {"residual_multiplier": -1}, "residual_multiplier"),
        (SMOLLM3, {"no_rope_layers": [1, 0]}, "no_rope_layers"),
        (QWEN_YARN, {"rope_scaling": {"type": "yarn", "factor": 0.5}}, "factor"),
    ],
)
def test_what_is_not_evaluated_faithfully_is_refused(data, changes, says):
    with pytest.raises(ModelError) as caught:
        read(data, "none" if data is MPNET else None, **changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 900
