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
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "type_vocab_size": 1},
    "xlm-roberta": {**_ENCODER, "type_vocab_size": 1},
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
}
_PREFIX = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "distilbert": "DistilBert",
    "gpt2": "GPT2",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "falcon": "Falcon",
}
_SUFFIX = {
    "none": "Model",
    "causal-lm": "ForCausalLM",
    "masked-lm": "ForMaskedLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert")
DECODERS = tuple(name for name in SETTINGS if name not in ENCODERS)
CASES = [
    (model_type, head)
    for model_type in SETTINGS
    for head in _SUFFIX
    if head != ("causal-lm" if model_type in ENCODERS else "masked-lm")
]
"""Every model type with every head that it can have."""


def class_of(model_type: str, head: str) -> Any:
    """The class of transformers."""
    suffix = "LMHeadModel" if (model_type, head) == ("gpt2", "causal-lm") else _SUFFIX[head]
    return getattr(transformers, _PREFIX[model_type] + suffix)


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
