"""GGUF files as llama.cpp's converter writes them, of tiny models of transformers."""

import json

import gguf
import numpy as np
import tiny_models
import torch
import transformers
from tokenizer_folders import byte_level

TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


NEWER_GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
LAYERS = {
    "gemma2": {**LAYER, **NEWER_GEMMA},
    "gemma3": {**LAYER, **NEWER_GEMMA},
    "phi3": {**LAYER, "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
}


def their_name(name: str, architecture: str = "llama") -> str:
    base, _, kind = name.rpartition(".")
    if base in TOP:
        return f"{TOP[base]}.{kind}"
    _, _, number, part = base.split(".", 3)
    return f"blk.{number}.{LAYERS.get(architecture, LAYER)[part]}.{kind}"


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """`permute` of llama.cpp's convert_hf_to_gguf.py, for weights and biases."""
    shape = (heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return values.reshape(shape).swapaxes(1, 2).reshape(values.shape)


def writer_of(path, config, architecture: str) -> gguf.GGUFWriter:
    """A writer that has the sizes of transformers' configuration."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_context_length(config.max_position_embeddings)
    return writer


def write(path, model, architecture: str, *, factors=None, settings=None):
    """As llama.cpp's converter writes a model of transformers.

    factors: the divisors of rotary frequencies, by the name of their tensor.
    """
    config = model.config
    writer = writer_of(path, config, architecture)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in (settings or {}).items():
        key = key if key.startswith("tokenizer.") else f"{architecture}.{key}"
        adders = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        adders[type(value)](key, value)
    for name, tensor in model.state_dict().items():
        values = tensor.float().numpy()
        if architecture in ("llama", "mistral"):
            if ".q_proj." in name:
                values = permuted(values, config.num_attention_heads)
            elif ".k_proj." in name:
                values = permuted(values, config.num_key_value_heads)
        if architecture.startswith("gemma"):
            if name == "lm_head.weight":  # always tied
                continue
            if name.endswith("norm.weight"):
                values = values + 1
        writer.add_tensor(their_name(name, architecture), np.ascontiguousarray(values))
    for kind, values in (factors or {}).items():
        writer.add_tensor(f"rope_{kind}.weight", np.asarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(model_type: str, **changes):
    torch.manual_seed(3)
    settings = {**tiny_models.SETTINGS[model_type], "initializer_range": 0.3, **changes}
    config = transformers.AutoConfig.for_model(model_type, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, values in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(values)
    return model


def metadata(**changes):
    vocab = byte_level().get_vocab()
    model = json.loads(byte_level().to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    tokens = sorted(vocab, key=vocab.__getitem__)
    found = {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": tokens,
        "token_type": [3] * 6 + [1] * (len(tokens) - 6),
        "merges": merges,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in found.items() if value is not None}


def write_chat(path, pre: str | None) -> None:
    """A file of a LLaMA with a byte-level tokenizer of that kind; None: it names none."""
    found = metadata(pre=pre)
    model = tiny("llama", vocab_size=len(found["tokenizer.ggml.tokens"]))
    write(path, model, "llama", settings=found)
