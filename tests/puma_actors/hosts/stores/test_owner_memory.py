"""An owner needs memory for its largest tensor and its share, not for its model."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
from party_processes import ROOT, environment
from safetensors.numpy import save_file
from waiting import HANG

from models.checkpoints.weights import open_checkpoint
from models.programs.families import parameters_of

HIDDEN, INNER, LAYERS, WORDS = 512, 1408, 16, 64
FLIGHT = 64_000_000
"""Bytes that are on their way to the parties at most, which is always the same."""
CONSTANT = 64_000_000
"""Code that is loaded, the state of the connections and so on."""


def save_llama(folder: Path) -> Path:
    """51 million weights, which are the same in each layer."""
    random = np.random.default_rng(0)

    def drawn(*shape: int) -> np.ndarray:
        return 0.02 * random.standard_normal(shape, dtype=np.float32)

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
    for number in range(LAYERS):
        tensors |= {f"model.layers.{number}.{name}.weight": item for name, item in layer.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_owner_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    with open_checkpoint(model) as checkpoint:
        sizes = [prod(each.shape) for each in parameters_of(checkpoint.config).values()]
    whole, largest = 4 * sum(sizes), (4 + 8) * max(sizes)
    assert whole > 200_000_000
    assert largest < 20_000_000
    script = ROOT / "tests" / "support" / "sharing" / "owner_alone.py"
    done = subprocess.run(
        [sys.executable, script, model, tmp_path],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["traced"] < largest + FLIGHT
    assert found["anonymous"] < largest + FLIGHT + CONSTANT < whole
