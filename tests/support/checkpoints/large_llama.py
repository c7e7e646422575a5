"""A checkpoint that is large enough to see where its weights are, and is written quickly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, WORDS = 512, 1408, 64


def save_llama(folder: Path, layers: int, dtype: type[np.floating[Any]] = np.float32) -> Path:
    """A model of 3.2 million weights a layer, which are the same in each."""
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return (0.02 * random.standard_normal(shape)).astype(np.float32)

    layer = {
        **{f"self_attn.{name}_proj": drawn(HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj": drawn(INNER, HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj": drawn(HIDDEN, INNER),
        "input_layernorm": np.ones(HIDDEN, np.float32),
        "post_attention_layernorm": np.ones(HIDDEN, np.float32),
    }
    tensors = {
        "model.embed_tokens.weight": drawn(WORDS, HIDDEN),
        "model.norm.weight": np.ones(HIDDEN, np.float32),
        "lm_head.weight": drawn(WORDS, HIDDEN),
    }
    for number in range(layers):
        tensors |= {f"model.layers.{number}.{name}.weight": item for name, item in layer.items()}
    folder.mkdir(exist_ok=True)
    stored = {name: item.astype(dtype) for name, item in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
