"""Tiny random models of every supported `model_type` and head, as transformers builds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from models.checkpoints.weights import Checkpoint

TOKENS = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 1}
_ENCODER = {
    **TOKENS,
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}
_LLAMA = {**_ENCODER, "num_key_value_heads": 2}
_FALCON = {name: value for name, value in _ENCODER.items() if name != "intermediate_size"}
_HALF = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
_SPECIAL = {"cls_token_id": 3, "sep_token_id": 4}
_GRANITE = {"attention_multiplier": 0.3, "logits_scaling": 2.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "xlm-roberta": {**_ENCODER, "type_vocab_size": 1},
    "camembert": {**_ENCODER, "type_vocab_size": 1},
    "data2vec-text": {**_ENCODER, "type_vocab_size": 1},
    "mpnet": _ENCODER,
    "electra": {**_ENCODER, "embedding_size": 12},
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 6,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    "modernbert": {**_ENCODER, "local_attention": 4, "global_attn_every_n_layers": 2, **_SPECIAL},
    "distilbert": {
        **TOKENS,
        "vocab_size": 40,
        "dim": 16,
        "hidden_dim": 24,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 20,
    },
    "gpt2": {
        **TOKENS,
        "vocab_size": 40,
        "n_embd": 16,
        "n_inner": 24,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 20,
    },
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": {**_LLAMA, "head_dim": 8},
    "falcon": _FALCON,
    "gpt_neox": {**_ENCODER, "num_attention_heads": 2, **_HALF},
    "opt": {**_ENCODER, "ffn_dim": 24, "word_embed_proj_dim": 12},
    "gemma": {**_LLAMA, "head_dim": 8},
    "gemma2": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4},
    "phi3": {**_LLAMA, "num_attention_heads": 2, "num_key_value_heads": 1, **_HALF},
    "granite": {**_LLAMA, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, **_GRANITE},
    "smollm3": {**_LLAMA, "no_rope_layer_interval": 2},
}
_PREFIX = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
    "data2vec-text": "Data2VecText",
    "mpnet": "MPNet",
    "electra": "Electra",
    "deberta-v2": "DebertaV2",
    "modernbert": "ModernBert",
    "distilbert": "DistilBert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "falcon": "Falcon",
    "gpt_neox": "GPTNeoX",
    "opt": "OPT",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "phi3": "Phi3",
    "granite": "Granite",
    "smollm3": "SmolLM3",
}
_SUFFIX = {
    "none": "Model",
    "causal-lm": "ForCausalLM",
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "data2vec-text",
    "mpnet",
    "electra",
    "deberta-v2",
    "modernbert",
    "distilbert",
)
DECODERS = tuple(name for name in SETTINGS if name not in ENCODERS)


def class_name(model_type: str, head: str) -> str:
    """What a class of transformers would be called."""
    suffix = "LMHeadModel" if (model_type, head) == ("gpt2", "causal-lm") else _SUFFIX[head]
    prefix = _PREFIX[model_type]
    if (model_type, head) == ("gemma3_text", "causal-lm"):
        prefix = "Gemma3"
    return prefix + suffix


EVERY_CASE = [
    (model_type, head)
    for model_type in SETTINGS
    for head in _SUFFIX
    if head != ("causal-lm" if model_type in ENCODERS else "masked-lm")
    and hasattr(transformers, class_name(model_type, head))
]
"""Every model type with every head that it can have."""
KIN = (
    "camembert",
    "data2vec-text",
    "gemma",
    "gemma3_text",
    "gpt_neox",
    "granite",
    "phi3",
    "smollm3",
)
"""Model types whose layers are another's but for settings."""
_BRIEF = ("deberta-v2", "electra", "gemma2", "modernbert", "mpnet", "opt")
_LINEAR = ("token-classification", "question-answering")
CASES = [
    (model_type, head)
    for model_type, head in EVERY_CASE
    if (model_type not in KIN or head in ("causal-lm", "masked-lm"))
    and (model_type not in _BRIEF or head not in _LINEAR)
]
"""The same, for suites that take a while: of kin the head over the vocabulary alone, and of some
others no heads that are a linear layer and nothing else.
"""


def class_of(model_type: str, head: str) -> Any:
    """The class of transformers."""
    return getattr(transformers, class_name(model_type, head))


def config_json(model_type: str, head: str = "none", /, **changes: Any) -> dict[str, Any]:
    """A `config.json` as transformers writes it, with some keys set afterwards."""
    config = getattr(transformers, _PREFIX[model_type] + "Config")(**SETTINGS[model_type])
    written = json.loads(config.to_json_string(use_diff=False))
    return {**written, "architectures": [class_of(model_type, head).__name__], **changes}


def tiny_model(model_type: str, head: str, *, seed: int = 0, **changes: Any) -> Any:
    """A model with random weights and biases (transformers begins with zero biases)."""
    torch.manual_seed(seed)
    settings = {**SETTINGS[model_type], **changes}
    if head in ("sequence-classification", "token-classification"):
        settings.setdefault("num_labels", 3)
    model = class_of(model_type, head)(
        getattr(transformers, _PREFIX[model_type] + "Config")(**settings)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def state(model: Any) -> dict[str, np.ndarray]:
    """Every tensor of a model in float32, by the name that transformers gives it."""
    return {name: value.float().numpy() for name, value in model.state_dict().items()}


def quantisable_llama(
    dtype: torch.dtype = torch.float32, **changes: Any
) -> transformers.LlamaForCausalLM:
    """A seeded model; sizes that the K quants (blocks of 256) can store."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 32,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**sizes, **changes}))
    return model.to(dtype)


def assert_same_weights(checkpoint: Checkpoint, expected: dict[str, np.ndarray]) -> None:
    assert set(checkpoint.names()) == set(expected)
    for name in checkpoint.names():
        values = checkpoint.tensor(name)
        assert values.dtype == np.float32
        assert values.flags.c_contiguous
        assert values.flags.writeable
        assert values.shape == checkpoint.shape(name)
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
